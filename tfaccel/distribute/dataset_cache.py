"""Dataset cache files of workers that share a directory.

A script calls `dataset.cache(path)` on every worker. For a second writer TensorFlow raises, or
reads the unfinished file of the first. So each worker has its own file, with its rank at the end of
the name.

The name is fixed when the dataset is created, so the method of `tf.data.Dataset` is replaced, once
per process and permanently; a cache in memory is TensorFlow's.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import tensorflow as tf


def use_worker_files(rank: int) -> None:
    """Makes `tf.data.Dataset.cache` write this worker's own files.

    Args:
        rank: of this worker.
    """
    dataset: Any = tf.data.Dataset
    original = getattr(dataset.cache, "_tfaccel_plain", dataset.cache)

    @functools.wraps(original)
    def cache(self: Any, filename: Any = "", name: Any = None) -> Any:
        if isinstance(filename, (str, os.PathLike)):
            path = os.fspath(filename)
            filename = f"{path}.rank{rank}" if path else path
        return original(self, filename, name)

    cache._tfaccel_plain = original  # type: ignore[attr-defined]
    dataset.cache = cache
