"""The global batches of a dataset, sharded over the replicas and placed on their devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfaccel.distribute import _private, dataset_consistency, padding, row_functions
from tfaccel.distribute.batch_iterator import BatchIterable, in_order, without_autotune
from tfaccel.distribute.batch_rows import PyDatasetRows
from tfaccel.distribute.batch_sharding import (
    Placement,
    ShardingOptions,
    is_absent,
    own_numbers,
    row_count,
    shard_batch,
    sharding_error,
    static_row_count,
    uneven,
)
from tfaccel.distribute.dataset_sharding import PER_WORKER, shard_dataset, shard_rows_of
from tfaccel.distribute.read_ahead import read_ahead


class Part(NamedTuple):
    """A replica's part of a batch.

    Attributes:
        data: its rows.
        batch_fraction: its part of all rows (float32 scalar); None where only the replicas
            themselves can count them.
        real: which of the rows are not padding copies (bool, shape `[rows]`); None where all are.
    """

    data: Any
    batch_fraction: Any
    real: Any = None


def shard_host_batch(
    batch: Any, placement: Placement, partial_batch: str = "exact", multiples: bool = False
) -> _private.PerReplicaBatch:
    """Shards one batch of host tensors that did not come from a dataset (`train_on_batch`).

    Raises:
        InputError: when parts of the batch have numbers of rows that do not go together.
    """
    batch, leaves = _host_tensors(batch)
    static = static_row_count(leaves, multiples)
    sharding = (
        ShardingOptions(multiples=multiples)
        if static is None
        else _sharding_options(partial_batch, multiples)
    )
    whole, fractions, rows = _shard(batch, leaves, placement, sharding)
    has_empty = static is not None and static < placement.replicas
    each = tf.unstack(fractions, placement.local)
    if partial_batch == "exact" or static is None:
        return exact_batch(whole, each, rows if has_empty else None)
    return padded_batch(whole, each, math.ceil(static / placement.replicas), has_empty)


def shard_own_batch(batch: Any, placement: Placement, multiples: bool) -> _private.PerReplicaBatch:
    """Shards one batch of host tensors that is this worker's part of a global batch.

    Args:
        batch: a nest.
        placement: only its local replicas matter.
        multiples: as in `Batches`.

    Raises:
        InputError: when parts of the batch have numbers of rows that do not go together.
    """
    batch, leaves = _host_tensors(batch)
    own = Placement(workers=1, rank=0, local=placement.local)
    parts, _, _ = _shard(batch, leaves, own, ShardingOptions(multiples=multiples))
    return _counted_by_replicas(parts)


def _host_tensors(batch: Any) -> tuple[Any, list[Any]]:
    batch = tf.nest.map_structure(
        lambda t: None if is_absent(t) else tf.convert_to_tensor(t), batch
    )
    return batch, [t for t in tf.nest.flatten(batch) if t is not None]


def _shard(
    batch: Any, leaves: list[Any], placement: Placement, sharding: ShardingOptions
) -> tuple[list[Any], tf.Tensor, tf.Tensor]:
    """As `shard_batch`, for the result of `_host_tensors`."""
    parts, fractions, rows = shard_batch(leaves, placement, sharding)
    whole = []
    for part in parts:
        rest = iter(part)
        whole.append(tf.nest.map_structure(lambda t, r=rest: None if t is None else next(r), batch))
    return whole, fractions, rows


def sharded_by_tensorflow(batch: Any, placement: Placement) -> _private.PerReplicaBatch:
    """A batch that `tf.distribute` has already sharded."""

    def part(replica: int) -> Any:
        return tf.nest.map_structure(
            lambda v: v.values[replica] if isinstance(v, tf.distribute.DistributedValues) else v,
            batch,
        )

    return _counted_by_replicas([part(replica) for replica in range(placement.local)])


def _counted_by_replicas(parts: Sequence[Any]) -> _private.PerReplicaBatch:
    """A batch with an unknown number of rows on each replica: possibly none."""
    return _private.PerReplicaBatch([Part(part, None) for part in parts], has_empty_replicas=True)


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
    """Whether leaves with these numbers of rows are in proportion.

    >>> keeps([3, 1, 1], (3, 1, 1)), keeps([2, 1], (3, 1)), keeps([2, 1], (1, 0))
    (True, False, True)
    """
    bases = {n / each for n, each in zip(rows, of, strict=True) if each}
    shared = all(n == 1 for n, each in zip(rows, of, strict=True) if not each)
    return shared and len(bases) <= 1


def _known_rows(leaf: Any) -> int:
    if isinstance(leaf, tf.Tensor) and leaf.shape[0] is not None:
        return int(leaf.shape[0])
    with tf.init_scope():  # a step that uses the batch may be in tracing
        return int(row_count(leaf))


class Batches(BatchIterable):
    """The global batches of a dataset, each sharded over our replicas and placed on their devices.

    Args:
        dataset: of global batches.
        placement: which of all replicas are ours.
        devices: of our replicas.
        partial_batch: as in `tfaccel.distribute.fit.KerasFit`.
        threads: Keras's prefetching threads, or None.
        multiples: as in `tfaccel.distribute.batch_sharding.ShardingOptions`.
        alike: whether all batches must have their parts in the proportion of the first one, which
            is the one inspected.
        all_gather: returns the numbers of every worker, where there are several.
        length: the number of batches, as `tfaccel.distribute.dataset_consistency.length_of`.
        inspected: as in `tfaccel.distribute._private.Caller`.
        py_dataset: Keras's adapter of the `PyDataset` that `dataset` reads, where only our rows are
            read; else None.
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
        inspected: bool = False,
        py_dataset: Any = None,
    ) -> None:
        super().__init__(threads, inspected)
        self._all_gather = all_gather
        self._length = length
        self._compared = all_gather is None
        self._is_deterministic = functools.partial(row_functions.is_deterministic, dataset)
        self._alike = alike and multiples
        self._proportion: tuple[int, ...] | None = None
        sharding = _sharding_options(partial_batch, multiples)
        self._partial_batch = partial_batch
        self._rows = 0  # of the largest batch so far
        self.element_spec = dataset.element_spec
        self._static_rows = has_static_rows(dataset.element_spec, placement)
        self._own: PyDatasetRows | None = None
        if py_dataset is not None:
            ours = functools.partial(own_numbers, placement=placement, sharding=sharding)
            self._own = PyDatasetRows(py_dataset, ours)
            divided = shard_rows_of(self._own.dataset, placement, sharding)
        else:
            first = dataset_consistency.fingerprints if all_gather is not None else None
            divided = shard_dataset(dataset, placement, threads is None, sharding, first)
        self._dataset = without_autotune(in_order(divided) if placement.workers > 1 else divided)
        self._placement = placement
        self._devices = devices

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        batches = self._placed(self._elements(source))
        copies = any("CPU" not in device.upper() for device in self._devices)
        ahead = copies and self._threads is None
        return read_ahead(batches, in_thread=False) if ahead else batches

    def _elements(self, source: Iterator[Any]) -> Iterator[Any]:
        """The elements of a split dataset; its errors are raised as our own."""
        try:
            yield from source if self._own is None else self._own.elements(source)
        except tf.errors.InvalidArgumentError as error:
            raise sharding_error(error) from None

    def _placed(self, elements: Iterator[Any]) -> Iterator[Any]:
        """The batches of a pass on our devices; `elements` are those of `shard_dataset`."""
        if self._all_gather is not None:
            elements = dataset_consistency.end_together(elements, self._length, self._all_gather)
        for element in elements:
            batch = self._place(*element)
            if batch is not None:
                batch.global_rows = int(element[2])
                yield batch

    def _place(
        self, parts: tuple[Any, ...], fractions: tf.Tensor, rows: tf.Tensor, fingerprint: Any = ()
    ) -> Any:
        """The batch on our devices, or None when it is to be dropped."""
        if self._all_gather is not None:
            if self._own is not None and len(fingerprint):
                self._own.check_order(fingerprint, self._all_gather)
            elif not self._compared:
                dataset_consistency.check_first_batch(
                    fingerprint, self._all_gather, self._is_deterministic, PER_WORKER
                )
            self._compared = True
        number, replicas = int(rows), self._placement.replicas
        has_empty = number < replicas
        each = tf.unstack(fractions)
        if number:
            self._check_proportion(parts[0])
        if self._partial_batch == "exact":
            placed = self._on_devices(parts)
            return exact_batch(placed, each, rows if has_empty else None, self._static_rows)
        if self._partial_batch == "drop":
            if self._rows == 0:
                padding.check_divides(number, replicas)
            if number < self._rows:
                return None
        self._rows = max(self._rows, number)
        local = math.ceil(self._rows / replicas)
        return padded_batch(parts, each, local, has_empty, self._on_devices)

    def _check_proportion(self, part: Any) -> None:
        if not self._alike:
            return
        found = numbers_of_rows(part)
        if self._proportion is None:
            self._proportion = proportion(found)
        if not keeps(found, self._proportion):
            raise uneven(found)

    def _on_devices(self, parts: Sequence[Any]) -> list[Any]:
        return [
            tf.nest.map_structure(lambda t, d=device: _copy_to_device(t, d), part)
            for part, device in zip(parts, self._devices, strict=True)
        ]


def _sharding_options(partial_batch: str, multiples: bool) -> ShardingOptions:
    if partial_batch != "exact":
        return ShardingOptions("last")
    return ShardingOptions("whole", multiples)


def _copy_to_device(tensor: Any, device: str) -> Any:
    # Strings, ragged and sparse tensors stay on the host, where their operations run.
    if "CPU" in device.upper() or not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
        return tensor
    with tf.device(device):
        return tf.identity(tensor)


def has_static_rows(spec: Any, placement: Placement) -> bool:
    """Whether the parts of batches of `spec` have a static number of rows, like the batches.

    A step may then read `x.shape[0]`, as on one device.
    """
    leaves = [s for s in tf.nest.flatten(spec) if not is_absent(s)]
    rows = [s.shape[0] if isinstance(s, tf.TensorSpec) and s.shape.rank else None for s in leaves]
    # With one row in each part, per-row values look like per-batch values.
    least = 2 * placement.replicas
    divide = all(n is not None and n >= least and n % placement.replicas == 0 for n in rows)
    return divide and bool(rows)


def exact_batch(
    parts: Sequence[Any],
    fractions: Sequence[tf.Tensor],
    undersized: tf.Tensor | None,
    static_rows: bool = False,
) -> _private.PerReplicaBatch:
    """Args: `undersized` is the number of rows where replicas outnumber them, else None."""
    if undersized is None:
        each = [Part(*part) for part in zip(parts, fractions, strict=True)]
        return _private.PerReplicaBatch(each, static_rows)
    # The first replica has all rows, and the others compute the same redundantly.
    real = [tf.repeat(fraction > 0, undersized) for fraction in fractions]
    each = [Part(*part) for part in zip(parts, fractions, real, strict=True)]
    return _private.PerReplicaBatch(each, has_empty_replicas=True)


def padded_batch(
    parts: Sequence[Any],
    fractions: Sequence[tf.Tensor],
    rows: int,
    has_empty_replicas: bool,
    placed: Callable[[Sequence[Any]], Sequence[Any]] = lambda parts: parts,
) -> _private.PerReplicaBatch:
    """Each replica's part padded to `rows` rows.

    Args:
        parts: of each replica here, with None for absent values.
        fractions: of each.
        rows: how many each gets.
        has_empty_replicas: as of the batch.
        placed: puts each replica's part on its device.
    """
    filled, real = zip(
        *(padding.pad(*part, rows) for part in zip(parts, fractions, strict=True)), strict=True
    )
    each = zip(placed(filled), fractions, placed(real), strict=True)
    return _private.PerReplicaBatch([Part(*part) for part in each], True, has_empty_replicas)
