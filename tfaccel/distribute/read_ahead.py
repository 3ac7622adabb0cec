"""Reads batches ahead: the next one is made, and copied to its devices, while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def read_ahead(batches: Iterator[Any], in_thread: bool) -> Generator[Any, None, None]:
    """Yields each of `batches` when the one after it is being read.

    Reads ahead from the second one on: Keras takes a first batch to see shapes, and for that alone
    no other is made. An error of the data is raised where its batch would be.

    Args:
        batches: none of them None.
        in_thread: whether they are read in a thread, which is for batches whose reading takes time
            and waits for no other worker: collectives must start in the same order everywhere.
            Otherwise reading one must only start its copies, which then continue by themselves.
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
