"""The global batches of a dataset, cut for the replicas and lying on their devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.feed import Feed
from tfaccel.distribute.split import Placement, split, split_dataset


class Sharded(NamedTuple):
    """A batch over its replicas: `data` and `share` are nests of PerReplica values.

    `share` is each replica's part of all rows (float32 scalars).
    """

    data: Any
    share: Any


class Starved(NamedTuple):
    """As `Sharded`, for a batch with fewer rows than replicas: some replicas have none."""

    data: Any
    share: Any


def shard(batch: Any, placement: Placement) -> Sharded | Starved:
    """Cuts one batch of host tensors that did not come from a dataset (`train_on_batch`)."""
    batch = tf.nest.map_structure(lambda t: t if t is None else tf.convert_to_tensor(t), batch)
    leaves = [t for t in tf.nest.flatten(batch) if t is not None]
    parts, shares, _ = split(leaves, placement)
    whole = []
    for part in parts:
        rest = iter(part)
        whole.append(tf.nest.map_structure(lambda t, r=rest: None if t is None else next(r), batch))
    rows = leaves[0].shape[0]
    starved = rows is not None and rows < placement.replicas
    return _regroup(tuple(whole), tuple(tf.unstack(shares, placement.local)), starved)


class Batches(Feed):
    """The global batches of a dataset, each cut for our replicas and lying on their devices."""

    def __init__(
        self, dataset: tf.data.Dataset, placement: Placement, devices: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.element_spec = dataset.element_spec
        self._dataset = split_dataset(dataset, placement)
        self._placement = placement
        self._devices = devices

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        batches = (self._place(*element) for element in source)
        return _ahead(batches) if any("CPU" not in d.upper() for d in self._devices) else batches

    def _place(self, parts: tuple[Any, ...], shares: tf.Tensor, rows: tf.Tensor) -> Any:
        placed = []
        for part, device in zip(parts, self._devices, strict=True):
            placed.append(tf.nest.map_structure(lambda t, d=device: _on_device(t, d), part))
        starved = int(rows) < self._placement.replicas
        return _regroup(tuple(placed), tuple(tf.unstack(shares)), starved)


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Starts the copies of the next batch before the current one is used."""
    ready = None
    for batch in batches:
        if ready is not None:
            yield ready
        ready = batch
    if ready is not None:
        yield ready


def _on_device(tensor: Any, device: str) -> Any:
    # Strings, ragged and sparse tensors stay on the host, where their operations are.
    if "CPU" in device.upper() or not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
        return tensor
    with tf.device(device):
        return tf.identity(tensor)


def _regroup(parts: tuple[Any, ...], shares: tuple[Any, ...], starved: bool) -> Sharded | Starved:
    kind = Starved if starved else Sharded
    data = tf.nest.map_structure(
        lambda *t: None if t[0] is None else _private.AnyRows(t), *parts, expand_composites=False
    )
    return kind(data, _private.AnyRows(shares))
