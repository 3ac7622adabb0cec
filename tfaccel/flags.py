"""Command-line flags for scripts: define them once, and get the strategy in one line.

    from absl import app
    from tfaccel import flags

    def main(_):
        strategy = flags.strategy()
        ...

    if __name__ == "__main__":
        flags.define()
        app.run(main)

Names and values follow the TensorFlow Model Garden (`official/common/distribute_utils.py`), whose
spellings of a value are understood wherever they are unambiguous. Differences:

| Model Garden | tfaccel |
| --- | --- |
| `--distribution_strategy=mirrored` | `--strategy=mirrored`; the default is `auto` |
| `--distribution_strategy=off` | refused: `one_device` runs the same script |
| `--distribution_strategy=parameter_...` | refused: Keras 3 does not support it |
| `--num_gpus=4` | `--devices=4`, of any kind; leave it out for all |
| `--num_gpus=0` | `--device_type=cpu` |
| `--dtype=fp16`, `bf16`, `fp32` | `--precision=mixed_float16`, `mixed_bfloat16`, `float32` |
| `--all_reduce_alg=ring`, `nccl` | `--communication=ring`, `nccl` |
| `--all_reduce_alg=hierarchical_copy` | refused: `auto` chooses it where it fits |
| `--enable_xla` | `--xla` |
| `--tpu=NAME` | the same |
| `--worker_hosts`, `--task_index` | none: the cluster is read from the environment |

`--monitor=DIRECTORY` measures every `fit` that is given `flags.callbacks(strategy)`:

    model.fit(x, y, callbacks=[*flags.callbacks(strategy), ...])

The command line takes precedence, then ``TFACCEL_<OPTION>`` in the environment, then the default
that the script gave to `define`, then tfaccel's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tfaccel import deprecated

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfaccel.planner.models import Source

_NO_KERAS_3 = "Keras 3 does not support it; use mirrored or multi_worker_mirrored"
_REFUSED_STRATEGIES = {
    "off": "use one_device, under which the script stays as it is",
    "default": "use auto",
    "collective": "use multi_worker_mirrored",
    "parameter_server": _NO_KERAS_3,
    "central_storage": _NO_KERAS_3,
}
_PRECISIONS = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "mixed_bfloat16": "mixed_bfloat16",
    "bfloat16": "mixed_bfloat16",
    "bf16": "mixed_bfloat16",
    "mixed_float16": "mixed_float16",
    "float16": "mixed_float16",
    "fp16": "mixed_float16",
}


def _strategy(text: str) -> str:
    """A strategy's name, in any case.

    >>> _strategy("Mirrored")
    'mirrored'
    >>> _strategy("off")
    Traceback (most recent call last):
    ValueError: 'off' is a Model Garden name without a match here: use one_device, ...
    """
    from tfaccel.strategies import NAMES

    name = text.lower()
    if name in _REFUSED_STRATEGIES:
        raise ValueError(
            f"{text!r} is a Model Garden name without a match here: {_REFUSED_STRATEGIES[name]}"
        )
    if name not in NAMES:
        raise ValueError(f"{text!r} is not a strategy; use one of {', '.join(NAMES)}")
    return name


def _precision(text: str) -> str:
    """A Keras dtype policy, also in the Model Garden's spelling.

    >>> _precision("fp16")
    'mixed_float16'
    """
    try:
        return _PRECISIONS[text.lower()]
    except KeyError:
        raise ValueError(
            f"{text!r} is not a precision; use auto, float32, mixed_bfloat16 or mixed_float16"
        ) from None


def _devices(text: str) -> int | str:
    """A count of devices, or their names.

    >>> _devices("4"), _devices("GPU:0,GPU:2")
    (4, 'GPU:0,GPU:2')
    """
    try:
        number = int(text)
    except ValueError:
        return text
    if number < 1:
        raise ValueError(
            f"{number} is not a valid number of devices; give 1 or more, leave the flag out for "
            "all, or use --device_type=cpu for none but the CPU"
        )
    return number


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError(f"{text!r} is not one of {', '.join(values)}")
        return text.lower()

    return parse


class _Parser(flags.ArgumentParser):  # type: ignore[misc]
    """A function from text to value as an absl parser; values that are not text pass through it."""

    syntactic_help = ""

    def __init__(self, parse: Callable[[str], Any]) -> None:
        super().__init__()
        self._parse = parse

    def parse(self, argument: Any) -> Any:
        return self._parse(str(argument))


# The parser of each flag (None for a yes or no), and its help.
_FLAGS: dict[str, tuple[Callable[[str], Any] | None, str]] = {
    "strategy": (_strategy, "Strategy to train under: auto, or one of tfaccel.strategies.NAMES."),
    "devices": (_devices, "How many devices of this worker to use, or which: 4, or GPU:0,GPU:2."),
    "device_type": (_one_of("auto", "cpu", "gpu", "tpu"), "Kind of device: auto, cpu, gpu, tpu."),
    "precision": (
        _precision,
        "Keras dtype policy: auto (by hardware), float32, mixed_bfloat16, mixed_float16.",
    ),
    "xla": (None, "Compile what TensorFlow can with XLA."),
    "communication": (
        _one_of("auto", "ring", "nccl", "mpi"),
        "How workers reduce gradients: auto, ring, nccl, mpi.",
    ),
    "gradient_compression": (
        str,
        "How gradients are sent: bfloat16, float16, powersgd, powersgd:RANK; as they are if unset.",
    ),
    "gradient_accumulation": (
        _one_of("reduced", "local"),
        "Reduce accumulated gradients in every step (reduced) or once for each update (local).",
    ),
    "local_steps": (
        int,
        "Steps that each replica takes alone before all are averaged (local SGD).",
    ),
    "partial_batch": (
        _one_of("exact", "pad", "drop"),
        "A batch with fewer rows: exact (as it is), pad (static shapes), drop (not trained on).",
    ),
    "batch_norm": (
        _one_of("replica", "synchronized"),
        "Rows that BatchNormalization normalises over: the replica's, or the global batch.",
    ),
    "rematerialization": (
        _one_of("full", "activations"),
        "Compute again in the backward pass instead of keeping: each layer (full), or activations.",
    ),
    "input": (
        _one_of("global", "per_worker"),
        "Dataset passed to fit on each worker: the full global batches (global), or this worker's "
        "own shard (per_worker).",
    ),
    "check": (
        _one_of("auto", "always", "off"),
        "Compare the first step with one device's: auto (models with custom components, and all "
        "models on a mesh), always, off.",
    ),
    "steps_per_execution": (int, "Steps that a TPU runs in one call; chosen if unset."),
    "data_service": (str, "host:port of a tf.data service that computes rows; see the launcher."),
    "profile": (str, "First and last step, as 10:20, that every worker profiles for TensorBoard."),
    "profile_dir": (str, "Directory of that profile; profile if unset."),
    "seed": (int, "Seed of Python, NumPy and Keras; agreed among workers when not given."),
    "deterministic": (None, "Use deterministic ops of TensorFlow: slower, reproducible."),
    "memory_growth": (None, "Allocate GPU memory as needed instead of all at the start."),
    "mesh": (str, "Mesh of strategy model_parallel: axes and sizes, such as batch=2,model=4."),
    "layouts": (
        _one_of("auto", "fully_sharded"),
        "How variables are sharded over the mesh: auto, fully_sharded.",
    ),
    "tpu": (str, "Name or address of the TPU; 'local' on a TPU VM."),
    "tpu_zone": (str, "Google Cloud zone of a TPU that is given by name."),
    "tpu_project": (str, "Google Cloud project of a TPU that is given by name."),
}
# Those of what a script does under the strategy.
_CALLBACK_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "monitor": (str, "Measure where the time of a fit goes; write a report into this directory."),
}


def define(*, flag_values: flags.FlagValues = flags.FLAGS, **defaults: object) -> None:
    """Defines tfaccel's flags; again, it only sets the defaults.

    Args:
        flag_values: where to define them; absl's global `FLAGS` for a script.
        **defaults: the script's own default for a flag, for example ``precision="auto"``.

    Raises:
        TypeError: a default is given for a flag that does not exist.
        ValueError: a default is not a value its flag can have.
        absl.flags.DuplicateFlagError: the script has defined a flag of the same name.
    """
    defaults = deprecated.renamed(defaults, deprecated.OPTIONS)
    every = {**_FLAGS, **_CALLBACK_FLAGS}
    if unknown := sorted(set(defaults) - set(every)):
        raise TypeError(f"no such flag: {', '.join(unknown)}; the flags are {', '.join(every)}")
    flags.disclaim_key_flags()  # so that `script.py --help` shows them with the script's own
    for name, (parse, text) in every.items():
        if name in flag_values and flag_values[name].help == text:
            continue
        if parse is None:
            flags.DEFINE_bool(name, None, text, flag_values=flag_values)
        else:
            flags.DEFINE(_Parser(parse), name, None, text, flag_values=flag_values)
    for old, new in deprecated.OPTIONS.items():
        parse, text = _FLAGS[new][0] or str, f"Deprecated: use --{new}."
        if old not in flag_values or flag_values[old].help != text:
            flags.DEFINE(_Parser(parse), old, None, text, flag_values=flag_values)
    for name, value in defaults.items():
        flag_values.set_default(name, value)


def options(
    *,
    flag_values: flags.FlagValues = flags.FLAGS,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """The arguments of `tfaccel.strategy` from the flags.

    The environment takes precedence over a script's default, so that ``TFACCEL_PRECISION=float32``
    works on every script.

    Args:
        flag_values: the parsed flags.
        environ: the environment.

    Returns:
        Keyword arguments; options that were not given are left out. The strategy's name is under
        ``"name"``.
    """
    requested: dict[str, Any] = {}
    names = {new: old for old, new in deprecated.OPTIONS.items()}
    for name in _FLAGS:
        flag = flag_values[name]
        if flag.value is None:
            continue
        variables = (f"TFACCEL_{n.upper()}" for n in (name, names.get(name, name)))
        if flag.using_default_value and any(map(environ.get, variables)):
            continue
        requested["name" if name == "strategy" else name] = flag.value
    old = {f"--{name}": flag_values[name].value for name in deprecated.OPTIONS}
    today = {f"--{name}": value for name, value in requested.items()}
    return {
        name.removeprefix("--"): value
        for name, value in deprecated.renamed({**today, **old}, deprecated.FLAGS).items()
    }


def strategy(
    *,
    model: Source | None = None,
    batch_size: int | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> tf.distribute.Strategy:
    """The strategy that the flags request; call it once, at the start of `main`.

    Args:
        model: as in `tfaccel.strategy`, where the flags leave the strategy and the mesh to it.
        batch_size: as there.
        flag_values: the parsed flags.

    Returns:
        What `tfaccel.strategy` returns for them.

    Raises:
        SystemExit: this machine or cluster cannot provide what was requested; prints one line with
            the reason, since a traceback would not help the user of a flag.
    """
    import tfaccel
    from tfaccel.errors import TfaccelError

    try:
        requested = options(flag_values=flag_values)
        if (
            model is not None
            and requested.get("name") in (None, "auto")
            and "mesh" not in requested
        ):
            requested |= {"model": model, "batch_size": batch_size}
        return tfaccel.strategy(**requested)
    except TfaccelError as error:
        sys.exit(str(error))


def callbacks(
    strategy: tf.distribute.Strategy,
    *,
    flag_values: flags.FlagValues = flags.FLAGS,
    environ: Mapping[str, str] = os.environ,
) -> list[keras.callbacks.Callback]:
    """The callbacks of `fit` that the flags request; every worker must pass them.

    Args:
        strategy: under which the model is trained.
        flag_values: the parsed flags.
        environ: the environment, whose ``TFACCEL_MONITOR`` stands for ``--monitor``.

    Returns:
        `tfaccel.monitor` with ``--monitor``; an empty list without.
    """
    flag = flag_values["monitor"]
    directory = flag.value
    if flag.value is None or flag.using_default_value:
        directory = environ.get("TFACCEL_MONITOR") or flag.value
    if not directory:
        return []
    import tfaccel

    return [tfaccel.monitor(strategy, directory)]
