"""The global batches of a dataset, sharded over the replicas and placed on their devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfaccel.distribute import _private, dataset_consistency, padding
from tfaccel.distribute.batch_iterator import BatchIterable, without_autotune
from tfaccel.distribute.batch_sharding import (
    Placement,
    ShardingOptions,
    is_absent,
    row_count,
    shard_batch,
    shard_dataset,
    sharding_error,
    static_row_count,
    uneven,
)
from tfaccel.distribute.read_ahead import read_ahead

# Stands for None in a batch on its replicas. Keras must find a distributed value in every leaf
# before it asks the strategy for a batch's shapes, and a plain None is none.
ABSENT = _private.PerReplica(())


class Sharded(NamedTuple):
    """A batch over its replicas: nests of PerReplica values.

    Attributes:
        data: the batch.
        batch_fraction: each replica's part of all rows (float32 scalars).
        real: which rows are no copies (bool, shape `[rows]`); empty where all are (Keras takes a
            None for a value that is not distributed).
    """

    data: Any
    batch_fraction: Any
    real: Any = ()


class ShardedWithEmpty(NamedTuple):
    """As `Sharded`, for a batch with fewer rows than replicas: some have only copies, or none."""

    data: Any
    batch_fraction: Any
    real: Any = ()


def shard_host_batch(
    batch: Any, placement: Placement, partial_batch: str = "exact", multiples: bool = False
) -> Sharded | ShardedWithEmpty:
    """Shards one batch of host tensors that did not come from a dataset (`train_on_batch`).

    Raises:
        InputError: when parts of the batch have numbers of rows that do not go together.
    """
    batch = tf.nest.map_structure(
        lambda t: None if is_absent(t) else tf.convert_to_tensor(t), batch
    )
    leaves = [t for t in tf.nest.flatten(batch) if t is not None]
    static = static_row_count(leaves, multiples)
    sharding = (
        ShardingOptions(multiples=multiples)
        if static is None
        else _sharding_options(partial_batch, multiples)
    )
    parts, fractions, rows = shard_batch(leaves, placement, sharding)
    whole = []
    for part in parts:
        rest = iter(part)
        whole.append(tf.nest.map_structure(lambda t, r=rest: None if t is None else next(r), batch))
    has_empty = static is not None and static < placement.replicas
    each = tuple(tf.unstack(fractions, placement.local))
    if partial_batch == "exact" or static is None:
        return _regroup(tuple(whole), each, rows if has_empty else None)
    return _padded_batch(tuple(whole), each, has_empty, math.ceil(static / placement.replicas))


def numbers_of_rows(part: Any) -> list[int]:
    """The number of rows of each leaf of a replica's part of a batch."""
    return [_known_rows(leaf) for leaf in tf.nest.flatten(part) if not is_absent(leaf)]


def proportion(rows: list[int]) -> tuple[int, ...]:
    """How many rows each leaf has for one of the others; 0 for one row that goes to all.

    >>> proportion([6, 2, 2]), proportion([4, 1])
    ((3, 1, 1), (1, 0))
    """
    most = max(rows, default=1)
    least = min((number for number in rows if number > 1), default=1)
    return tuple(0 if number == 1 < most else number // least for number in rows)


def keeps(rows: list[int], of: tuple[int, ...]) -> bool:
    """Whether leaves with these numbers of rows are in a proportion.

    >>> keeps([3, 1, 1], (3, 1, 1)), keeps([2, 1], (3, 1)), keeps([2, 1], (1, 0))
    (True, False, True)
    """
    bases = {n / each for n, each in zip(rows, of, strict=True) if each}
    shared = all(n == 1 for n, each in zip(rows, of, strict=True) if not each)
    return shared and len(bases) <= 1


def _known_rows(leaf: Any) -> int:
    if isinstance(leaf, tf.Tensor) and leaf.shape[0] is not None:
        return int(leaf.shape[0])
    with tf.init_scope():  # a step that uses the batch may be being traced
        return int(row_count(leaf))


class Batches(BatchIterable):
    """The global batches of a dataset, each sharded over our replicas and placed on their devices.

    Args:
        dataset: of global batches.
        placement: which of all replicas are ours.
        devices: of our replicas.
        partial_batch: as in `tfaccel.distribute.fit.KerasFit`.
        threads: Keras's threads that read them ahead, or None.
        multiples: as in `tfaccel.distribute.batch_sharding.ShardingOptions`.
        alike: whether all batches must have their parts in the proportion of the first one, which
            is the one that is looked at.
        all_gather: gives the numbers of every worker, where there are several.
        length: the number of batches, as `tfaccel.distribute.dataset_consistency.length_of`.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        placement: Placement,
        devices: tuple[str, ...],
        partial_batch: str = "exact",
        threads: Any = None,
        multiples: bool = False,
        alike: bool = False,
        all_gather: dataset_consistency.AllGather | None = None,
        length: int = tf.data.UNKNOWN_CARDINALITY,
    ) -> None:
        super().__init__(threads)
        self._all_gather = all_gather
        self._length = length
        self._compared = all_gather is None
        first = dataset_consistency.fingerprints if all_gather is not None else None
        self._alike = alike and multiples
        self._proportion: tuple[int, ...] | None = None
        sharding = _sharding_options(partial_batch, multiples)
        self._partial_batch = partial_batch
        self._rows = 0  # of the largest batch so far
        self.element_spec = dataset.element_spec
        self._kind = _kind(dataset.element_spec, placement)
        self._dataset = without_autotune(
            shard_dataset(dataset, placement, threads is None, sharding, first)
        )
        self._placement = placement
        self._devices = devices

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        elements = _elements(source)
        if self._all_gather is not None:
            elements = dataset_consistency.end_together(elements, self._length, self._all_gather)
        batches = (b for element in elements if (b := self._place(*element)) is not None)
        copies = any("CPU" not in device.upper() for device in self._devices)
        ahead = copies and self._threads is None
        return read_ahead(batches, in_thread=False) if ahead else batches

    def _place(
        self, parts: tuple[Any, ...], fractions: tf.Tensor, rows: tf.Tensor, said: Any = ()
    ) -> Any:
        """The batch on our devices, or None when it is to be dropped."""
        if self._all_gather is not None and not self._compared:
            self._compared = True
            dataset_consistency.check_first_batch(said, self._all_gather)
        number, replicas = int(rows), self._placement.replicas
        has_empty = number < replicas
        each = tuple(tf.unstack(fractions))
        if self._alike:
            found = numbers_of_rows(parts[0])
            if self._proportion is None:
                self._proportion = proportion(found)
            if number and not keeps(found, self._proportion):
                raise uneven(found)
        if self._partial_batch == "exact":
            return _regroup(self._on_devices(parts), each, rows if has_empty else None, self._kind)
        if self._partial_batch == "drop":
            if self._rows == 0:
                padding.check_divides(number, replicas)
            if number < self._rows:
                return None
        self._rows = max(self._rows, number)
        local = math.ceil(self._rows / replicas)
        return _padded_batch(parts, each, has_empty, local, self._on_devices)

    def _on_devices(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            tf.nest.map_structure(lambda t, d=device: _copy_to_device(t, d), part)
            for part, device in zip(parts, self._devices, strict=True)
        )


def _sharding_options(partial_batch: str, multiples: bool) -> ShardingOptions:
    if partial_batch != "exact":
        return ShardingOptions("last")
    return ShardingOptions("whole", multiples)


def _elements(source: Iterator[Any]) -> Iterator[Any]:
    """The elements of a dataset that was split; what it refuses is raised as our own error."""
    try:
        yield from source
    except tf.errors.InvalidArgumentError as error:
        raise sharding_error(error) from None


def _copy_to_device(tensor: Any, device: str) -> Any:
    # Strings, ragged and sparse tensors stay on the host, where their operations are.
    if "CPU" in device.upper() or not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
        return tensor
    with tf.device(device):
        return tf.identity(tensor)


def _kind(spec: Any, placement: Placement) -> type:
    """What the parts of batches of `spec` are: of a static number of rows where batches are.

    A step may then read `x.shape[0]`, as on one device.
    """
    leaves = [s for s in tf.nest.flatten(spec) if not is_absent(s)]
    rows = [s.shape[0] if isinstance(s, tf.TensorSpec) and s.shape.rank else None for s in leaves]
    # With one row in each part, what is made for each row looks like what is made once.
    least = 2 * placement.replicas
    divide = all(n is not None and n >= least and n % placement.replicas == 0 for n in rows)
    return _private.StaticRows if divide and rows else _private.DynamicRows


def _regroup(
    parts: tuple[Any, ...],
    fractions: tuple[Any, ...],
    undersized: tf.Tensor | None,
    kind: type = _private.DynamicRows,
) -> Sharded | ShardedWithEmpty:
    """Args: `undersized` is the number of rows where replicas outnumber them, else None."""
    data = per_replica(parts, _private.DynamicRows if undersized is not None else kind)
    if undersized is None:
        return Sharded(data, _private.DynamicRows(fractions))
    # The first replica has all rows, and the others the same to compute for nothing.
    real = tuple(tf.repeat(fraction > 0, undersized) for fraction in fractions)
    return ShardedWithEmpty(data, _private.DynamicRows(fractions), _private.DynamicRows(real))


def _padded_batch(
    parts: tuple[Any, ...],
    fractions: tuple[Any, ...],
    has_empty: bool,
    rows: int,
    placed: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda parts: parts,
) -> Sharded | ShardedWithEmpty:
    """Each replica's part filled up to `rows` rows."""
    filled, real = zip(
        *(padding.pad(*part, rows) for part in zip(parts, fractions, strict=True)), strict=True
    )
    kind = ShardedWithEmpty if has_empty else Sharded
    data, real = per_replica(placed(filled), _private.StaticRows), placed(real)
    return kind(data, _private.PerReplica(fractions), _private.StaticRows(real))


def per_replica(parts: Sequence[Any], kind: type) -> Any:
    """One nest of values of `kind` from the part of each replica; `ABSENT` where those are None.

    Args:
        parts: nests of one structure.
        kind: `PerReplica` or a subclass.
    """
    return tf.nest.map_structure(
        lambda *t: ABSENT if t[0] is None else kind(t), *parts, expand_composites=False
    )


def absent_to_none(batch: Any) -> Any:
    """A nest as `per_replica` makes it, with None again where it holds `ABSENT`."""
    return tf.nest.map_structure(
        lambda v: None if isinstance(v, _private.PerReplica) and not v.values else v,
        batch,
        expand_composites=False,
    )
