"""Windows as scalars of TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tfaccel.monitoring.summary import PARTS
from tfaccel.monitoring.window import COMPILES, Window, rate, share

_MOST_WORKERS = 16  # with scalars of their own


def scalars(windows: Sequence[Window]) -> dict[str, float]:
    """The scalars of one window of all workers, by tag.

    What is the same for all workers, and the chief's parts, have plain tags; each worker's busy
    time has one with its rank. Missing measurements are left out.

    Args:
        windows: of one number, one for each worker.

    >>> tags = scalars([Window(run=1, worker=0, number=1, step=0, steps=10, seconds=2.0)])
    >>> tags
    {'monitor/step_time_ms': 200.0}
    """
    chief = windows[0]
    if chief.number == COMPILES:
        return {"monitor/compiling_s": chief.seconds}
    tags: dict[str, float | None] = {"step_time_ms": chief.seconds / chief.steps * 1e3}
    for part in PARTS:
        tags[f"share/{part}"] = share(getattr(chief, f"{part}_s"), chief.seconds)
    tags["examples_per_second"] = rate(chief.examples, chief.seconds)
    tags["tokens_per_second"] = rate(chief.tokens, chief.seconds)
    tags["mfu"] = chief.mfu
    for name in ("memory", "peak_memory", "device_memory", "peak_device_memory"):
        value = getattr(chief, name)
        tags[f"{name}_mib"] = None if value is None else value / 2**20
    if 1 < len(windows) <= _MOST_WORKERS:
        for window in windows:
            local_ms = None if window.own_s is None else window.own_s / window.steps * 1e3
            tags[f"local_step_time_ms/worker_{window.worker}"] = local_ms
    return {f"monitor/{name}": value for name, value in tags.items() if value is not None}


class ScalarWriter:
    """Writes scalars into a directory that TensorBoard reads.

    Args:
        directory: where.

    Raises:
        OSError: here or in its methods, where the file cannot be written.
    """

    def __init__(self, directory: str) -> None:
        import tensorflow as tf

        self._tf = tf
        with self._as_os_error():
            self._writer = tf.summary.create_file_writer(directory)

    def write(self, windows: Sequence[Window]) -> None:
        """Adds one window of all workers, at the step that it ends with."""
        step = windows[0].step + windows[0].steps
        with (
            self._as_os_error(),
            self._writer.as_default(),
            self._tf.summary.record_if(True),
        ):
            for name, value in scalars(windows).items():
                self._tf.summary.scalar(name, value, step=step)

    def close(self) -> None:
        """Closes the file."""
        with self._as_os_error():
            self._writer.close()

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except self._tf.errors.OpError as error:
            raise OSError(error.message) from error
