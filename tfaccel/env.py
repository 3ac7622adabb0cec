"""`tfaccel env`: what a bug report needs about a machine, on one page.

`report` inspects, `table` and `to_json` show; nothing here fails on a broken installation, since
that is what it diagnoses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from tfaccel import cluster, hardware, installed
from tfaccel.cluster import Cluster, ResolverResult, job_secret
from tfaccel.errors import TfaccelError
from tfaccel.hardware import Device

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "not installed"

_VARIABLES = (
    "KERAS_BACKEND",
    "TF_USE_LEGACY_KERAS",
    "TF_CONFIG",
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "CUDA_VISIBLE_DEVICES",
    "TPU_NAME",
)


@dataclass(frozen=True)
class Report:
    """What `tfaccel env` found.

    Attributes:
        tfaccel: its version.
        python: Python's version.
        platform: operating system and processor architecture.
        tensorflow: version, and the distribution it came from.
        keras: Keras's version.
        backend: the backend that Keras runs on; ``""`` if it does not start.
        numpy: NumPy's version.
        cores: processor cores this process may use.
        memory: the machine's memory in GiB; None where unknown.
        cuda: the CUDA version TensorFlow was built for; ``""`` for a build without CUDA.
        cudnn: the same for cuDNN.
        variables: name and value of the environment variables that change a run.
        devices: the devices TensorFlow sees.
        cluster: the workers of this job; None outside one.
        resolvers: each cluster resolver's variables and result, in their order.
        auto: the strategy that `auto` would choose; ``""`` if it cannot.
        reason: why that one.
        problems: what is wrong, one line each.
    """

    tfaccel: str
    python: str
    platform: str
    tensorflow: str
    keras: str
    backend: str
    numpy: str
    cores: int
    memory: float | None
    cuda: str
    cudnn: str
    variables: tuple[tuple[str, str], ...]
    devices: tuple[Device, ...]
    cluster: Cluster | None
    resolvers: tuple[ResolverResult, ...]
    auto: str
    reason: str
    problems: tuple[str, ...]


def report(environ: Mapping[str, str] = os.environ) -> Report:
    """Inspects this machine. Imports TensorFlow and Keras, which starts their devices.

    Args:
        environ: the environment to read settings and the cluster from.

    Returns:
        What was found; what went wrong is in `Report.problems`.
    """
    import tfaccel

    variables = _variables(environ)  # first: importing Keras sets some
    problems: list[str] = []
    cuda, cudnn, backend = "", "", ""
    devices: tuple[Device, ...] = ()
    workers, answers = None, cluster.resolve_all(environ)
    auto, reason = "", ""
    try:
        installed.check(installed.packages())  # or the imports below would end this process
        cuda, cudnn, devices = _tensorflow(problems)
        backend = _backend(environ, problems)
        workers = cluster.decide(answers)
        if devices and backend == "tensorflow":  # otherwise a line already gives the reason
            auto, reason = _choose(environ, devices, workers)
    except TfaccelError as error:
        problems.append(str(error))
    return Report(
        tfaccel=tfaccel.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        tensorflow=_installed(*installed.TENSORFLOWS),
        keras=_installed("keras"),
        backend=backend,
        numpy=_installed("numpy"),
        cores=hardware.cores(),
        memory=_memory(),
        cuda=cuda,
        cudnn=cudnn,
        variables=variables,
        devices=devices,
        cluster=workers,
        resolvers=answers,
        auto=auto,
        reason=reason,
        problems=tuple(problems),
    )


def _choose(
    environ: Mapping[str, str], devices: tuple[Device, ...], workers: Cluster | None
) -> tuple[str, str]:
    """What `tfaccel.strategy()` would choose in the current environment, and why."""
    from tfaccel.strategies import select

    choice = select(None, {}, environ, devices, workers).choice
    return choice.name, choice.reason


def _tensorflow(problems: list[str]) -> tuple[str, str, tuple[Device, ...]]:
    """CUDA, cuDNN and devices; a TensorFlow that does not start is a problem, not an error."""
    try:
        import tensorflow as tf

        build = tf.sysconfig.get_build_info()
        devices = hardware.detect()
    except Exception as error:
        problems.append(f"TensorFlow does not start: {_line(error)}")
        return "", "", ()
    return str(build.get("cuda_version", "")), str(build.get("cudnn_version", "")), devices


def _backend(environ: Mapping[str, str], problems: list[str]) -> str:
    """Keras's backend; what tfaccel cannot work with is a problem."""
    if environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        problems.append(
            "TF_USE_LEGACY_KERAS requests Keras 2 and tfaccel needs Keras 3: unset the variable"
        )
    try:
        import keras

        backend = str(keras.backend.backend())
    except Exception as error:
        problems.append(f"Keras does not start: {_line(error)}")
        return ""
    if backend != "tensorflow":
        problems.append(
            f"Keras runs on {backend} and tfaccel needs tensorflow: set KERAS_BACKEND=tensorflow"
        )
    return backend


def _line(error: Exception) -> str:
    text = str(error).strip() or repr(error)
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def _installed(*distributions: str) -> str:
    """The version of the first of these that is installed, and its name if not the default."""
    for distribution in distributions:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return version if distribution == distributions[0] else f"{version} ({distribution})"
    return MISSING


def _memory() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(total / 2**30, 1)


def _variables(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    names = (*_VARIABLES, *sorted(name for name in environ if name.startswith("TFACCEL_")))
    shown = {**environ, job_secret.VARIABLE: "(set, not shown)"}
    return tuple((name, shown[name]) for name in names if name in environ)


def to_json(report: Report) -> str:
    """The report as JSON, one key for each attribute of `Report`; variables are objects."""
    shown = dataclasses.asdict(report)
    for part in (shown, *shown["resolvers"]):
        part["variables"] = dict(part["variables"])
    return json.dumps(shown, indent=2)


def rows(report: Report) -> list[tuple[str, str]]:
    """The report as lines of a subject and what was found."""
    workers = report.cluster
    lines = [
        ("tfaccel", report.tfaccel),
        ("Python", f"{report.python} on {report.platform}"),
        ("TensorFlow", report.tensorflow),
        ("Keras", report.keras + (f" on {report.backend}" if report.backend else "")),
        ("NumPy", report.numpy),
        ("cores", str(report.cores)),
        ("memory", "unknown" if report.memory is None else f"{report.memory} GiB"),
        ("built for", _built(report)),
        *((device.name, device.description or device.kind) for device in report.devices),
        *report.variables,
    ]
    if workers is None:
        lines.append(("cluster", "none"))
    else:
        lines.append(("cluster", f"worker {workers.rank} of {workers.size}, by {workers.source}"))
        lines += [(f"worker {rank}", address) for rank, address in enumerate(workers.workers)]
    for answer in report.resolvers:
        if answer.variables:
            passed = "" if workers is None or answer.cluster == workers else ", ignored"
            lines.append((f"by {answer.source}{passed}", f"{answer.summary}; read {answer.read}"))
    if report.auto:
        lines.append(("auto", f"{report.auto}: {report.reason}"))
    lines += [("problem", problem) for problem in report.problems]
    return lines


def _built(report: Report) -> str:
    if not report.cuda:
        return "CPU (no CUDA)"
    return f"CUDA {report.cuda}, cuDNN {report.cudnn}"


def table(report: Report) -> Table:
    """The report as a table."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(show_header=False, title="tfaccel env", title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for subject, text in rows(report):
        style = "red" if subject == "problem" else None
        shown.add_row(escape(subject), escape(text), style=style)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tfaccel env`.

    Args:
        argv: the arguments after `env`; the process's own when None.

    Returns:
        The exit code: 0, even when there are problems to report.
    """
    parser = argparse.ArgumentParser(
        prog="tfaccel env", description="Show versions, devices and settings, for a bug report."
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    arguments = parser.parse_args(argv)
    this_machine = report()
    if arguments.json:
        print(to_json(this_machine))
    else:
        from rich.console import Console

        Console().print(table(this_machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
