"""Settings of the whole process that a strategy makes before its first device is used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from tfaccel.errors import StrategyError
from tfaccel.hardware import Device, cores
from tfaccel.strategies.options import Options


def apply(options: Options, available: Sequence[Device], names: Sequence[str]) -> str:
    """Applies precision, XLA, memory growth, seeds and determinism.

    Args:
        options: what was requested.
        available: the devices of this process.
        names: the devices the strategy will use.

    Returns:
        The dtype policy in force.
    """
    _backend()
    _logical_cpus(1 + max((int(n[4:]) for n in names if n.startswith("CPU")), default=0))
    if options.memory_growth:
        _memory_growth()
    if options.xla:
        if not any(name.startswith("GPU") for name in names):
            raise StrategyError(
                "tfaccel: xla=True was requested without a GPU, where it changes nothing; leave it "
                "out (TPUs always use XLA, a lone CPU does through compile(jit_compile=True))."
            )
        tf.config.optimizer.set_jit("autoclustering")
    if options.seed is not None:
        keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        if options.seed is None:
            raise StrategyError("tfaccel: deterministic=True needs a seed; add seed=0.")
        tf.config.experimental.enable_op_determinism()
    if options.precision is not None:
        keras.config.set_dtype_policy(precision(options.precision, available, names))
    return str(keras.config.dtype_policy().name)


def precision(requested: str, available: Sequence[Device], names: Sequence[str]) -> str:
    """What ``"auto"`` means on these devices; anything else means itself.

    >>> gpu = Device("GPU", 0, compute_capability=(7, 5))
    >>> precision("auto", [gpu], ["GPU:0"])
    'mixed_float16'
    """
    if requested != "auto":
        return requested
    if all(name.startswith("TPU") for name in names):
        return "mixed_bfloat16"
    used = [d for d in available if d.name in names]
    capabilities = [d.compute_capability or (0, 0) for d in used if d.kind == "GPU"]
    if not capabilities or min(capabilities) < (7, 0):
        return "float32"
    return "mixed_bfloat16" if min(capabilities) >= (8, 0) else "mixed_float16"


def restrict_visible_gpus(names: Sequence[str]) -> tuple[str, ...]:
    """Hides the GPUs that are not in `names`, so that TensorFlow numbers and uses only those.

    Returns:
        The names that the devices have from now on. A GPU that was divided into logical ones stays
        whole.
    """
    gpus = tf.config.get_visible_devices("GPU")
    visible: list[tf.config.PhysicalDevice] = []
    renamed: dict[str, str] = {}
    index = 0
    for gpu in gpus:
        parts = len(tf.config.get_logical_device_configuration(gpu) or [gpu])
        logical = [f"GPU:{i}" for i in range(index, index + parts)]
        index += parts
        if any(name in names for name in logical):
            visible.append(gpu)
            renamed |= {name: f"GPU:{len(renamed) + i}" for i, name in enumerate(logical)}
    now = tuple(renamed.get(name, name) for name in names)
    if gpus == visible:
        return now
    try:
        tf.config.set_visible_devices(visible, "GPU")
    except RuntimeError:
        raise StrategyError(
            f"tfaccel: {', '.join(names)} was requested after TensorFlow had started on other "
            "devices; create the strategy before anything else uses TensorFlow."
        ) from None
    return now


def spare_thread() -> None:
    """Lets TensorFlow compute while one of its threads waits for other workers, on one core.

    TensorFlow has one inter-op thread per core; one that waits in MPI is blocked.
    """
    configured = tf.config.threading.get_inter_op_parallelism_threads()
    if configured or "TF_NUM_INTEROP_THREADS" in os.environ or cores() > 1:
        return
    # Too late when TensorFlow has started: slower, but nothing else changes.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_inter_op_parallelism_threads(2)


def _backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise StrategyError(
            f"tfaccel: Keras runs on {keras.backend.backend()!r}; expected 'tensorflow'; unset "
            "KERAS_BACKEND or set it to tensorflow."
        )
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        logging.warning(
            "tfaccel: TF_USE_LEGACY_KERAS is set, so tf.keras is Keras 2, which tfaccel does not "
            "distribute; import keras instead of tf.keras, or unset it."
        )


def _logical_cpus(count: int) -> None:
    if count < 2:
        return
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or [cpu]) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError:
        raise StrategyError(
            f"tfaccel: {count} logical CPUs were requested after TensorFlow had started with "
            "fewer; create the strategy before anything else uses TensorFlow."
        ) from None


def _memory_growth() -> None:
    for gpu in tf.config.get_visible_devices("GPU"):
        if tf.config.get_logical_device_configuration(gpu):
            continue  # each of its parts has a limit
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except (RuntimeError, ValueError) as reason:
            logging.warning("tfaccel: memory growth stays as it is: %s", reason)
            return
