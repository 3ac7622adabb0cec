"""Prefetches batches: the next one is created, and copied to its devices, while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def read_ahead(batches: Iterator[Any], in_thread: bool) -> Generator[Any, None, None]:
    """Yields each of `batches` while the one after it is being read.

    Prefetches from the second one on: Keras takes a first batch to inspect shapes, which alone
    should not create another. An error of the data is raised where its batch would be.

    Args:
        batches: none of them None.
        in_thread: whether to read them in a thread, for batches that take time to read and involve
            no other worker: collectives must start in the same order everywhere. Otherwise reading
            one must only start its copies, which then continue asynchronously.
    """
    if (first := next(batches, None)) is None:
        return
    yield first
    pool = ThreadPoolExecutor(1, "tfaccel-batches") if in_thread else None
    submit = pool.submit if pool is not None else _submit
    try:
        coming = submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = submit(next, batches, None)
            yield batch
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _submit(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """As `ThreadPoolExecutor.submit`, in this thread."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args))
    except Exception as error:
        future.set_exception(error)
    return future
