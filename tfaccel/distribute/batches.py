"""The global batches of a dataset, cut for the replicas and lying on their devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfaccel.distribute import _private, padding, same_data
from tfaccel.distribute.feed import Feed, unwatched
from tfaccel.distribute.split import (
    Cut,
    Placement,
    is_nothing,
    refusal,
    row_count,
    rows_of,
    split,
    split_dataset,
    uneven,
)

# Stands for None in a batch on its replicas. Keras must find a distributed value in every leaf
# before it asks the strategy for a batch's shapes, and a plain None is none.
NOTHING = _private.PerReplica(())


class Sharded(NamedTuple):
    """A batch over its replicas: nests of PerReplica values.

    Attributes:
        data: the batch.
        share: each replica's part of all rows (float32 scalars).
        real: which rows are no copies (bool, shape `[rows]`); empty where all are (Keras takes a
            None for a value that is not distributed).
    """

    data: Any
    share: Any
    real: Any = ()


class Starved(NamedTuple):
    """As `Sharded`, for a batch with fewer rows than replicas: some have only copies, or none."""

    data: Any
    share: Any
    real: Any = ()


def shard(
    batch: Any, placement: Placement, ragged: str = "exact", multiples: bool = False
) -> Sharded | Starved:
    """Cuts one batch of host tensors that did not come from a dataset (`train_on_batch`).

    Raises:
        InputError: when parts of the batch have numbers of rows that do not go together.
    """
    batch = tf.nest.map_structure(
        lambda t: None if is_nothing(t) else tf.convert_to_tensor(t), batch
    )
    leaves = [t for t in tf.nest.flatten(batch) if t is not None]
    static = rows_of(leaves, multiples)
    cut = Cut(multiples=multiples) if static is None else _cut(ragged, multiples)
    parts, shares, rows = split(leaves, placement, cut)
    whole = []
    for part in parts:
        rest = iter(part)
        whole.append(tf.nest.map_structure(lambda t, r=rest: None if t is None else next(r), batch))
    starved = static is not None and static < placement.replicas
    each = tuple(tf.unstack(shares, placement.local))
    if ragged == "exact" or static is None:
        return _regroup(tuple(whole), each, rows if starved else None)
    return _static(tuple(whole), each, starved, math.ceil(static / placement.replicas))


def numbers_of_rows(part: Any) -> list[int]:
    """The number of rows of each leaf of a replica's part of a batch."""
    return [_known_rows(leaf) for leaf in tf.nest.flatten(part) if not is_nothing(leaf)]


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


class Batches(Feed):
    """The global batches of a dataset, each cut for our replicas and lying on their devices.

    Args:
        dataset: of global batches.
        placement: which of all replicas are ours.
        devices: of our replicas.
        ragged: as in `tfaccel.distribute.fit.KerasFit`.
        threads: Keras's threads that read them ahead, or None.
        multiples: as in `tfaccel.distribute.split.Cut`.
        alike: whether all batches must have their parts in the proportion of the first one, which
            is the one that is looked at.
        share: gives the numbers of every worker, where there are several.
        length: the number of batches, as `tfaccel.distribute.same_data.length_of`.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        placement: Placement,
        devices: tuple[str, ...],
        ragged: str = "exact",
        threads: Any = None,
        multiples: bool = False,
        alike: bool = False,
        share: same_data.Shared | None = None,
        length: int = tf.data.UNKNOWN_CARDINALITY,
    ) -> None:
        super().__init__(threads)
        self._share = share
        self._length = length
        self._compared = share is None
        first = same_data.fingerprints if share is not None else None
        self._alike = alike and multiples
        self._proportion: tuple[int, ...] | None = None
        cut = _cut(ragged, multiples)
        self._ragged = ragged
        self._rows = 0  # of the largest batch so far
        self.element_spec = dataset.element_spec
        self._kind = _kind(dataset.element_spec, placement)
        self._dataset = unwatched(split_dataset(dataset, placement, threads is None, cut, first))
        self._placement = placement
        self._devices = devices

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        elements = _read(source)
        if self._share is not None:
            elements = same_data.in_step(elements, self._length, self._share)
        batches = (b for element in elements if (b := self._place(*element)) is not None)
        copies = any("CPU" not in device.upper() for device in self._devices)
        return _ahead(batches) if copies and self._threads is None else batches

    def _place(
        self, parts: tuple[Any, ...], shares: tf.Tensor, rows: tf.Tensor, said: Any = ()
    ) -> Any:
        """The batch on our devices, or None when it is to be dropped."""
        if self._share is not None and not self._compared:
            self._compared = True
            same_data.check_first(said, self._share)
        number, replicas = int(rows), self._placement.replicas
        starved = number < replicas
        each = tuple(tf.unstack(shares))
        if self._alike:
            found = numbers_of_rows(parts[0])
            if self._proportion is None:
                self._proportion = proportion(found)
            if number and not keeps(found, self._proportion):
                raise uneven(found)
        if self._ragged == "exact":
            return _regroup(self._on_devices(parts), each, rows if starved else None, self._kind)
        if self._ragged == "drop":
            if self._rows == 0:
                padding.check_divides(number, replicas)
            if number < self._rows:
                return None
        self._rows = max(self._rows, number)
        local = math.ceil(self._rows / replicas)
        return _static(parts, each, starved, local, self._on_devices)

    def _on_devices(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            tf.nest.map_structure(lambda t, d=device: _on_device(t, d), part)
            for part, device in zip(parts, self._devices, strict=True)
        )


def _cut(ragged: str, multiples: bool) -> Cut:
    if ragged != "exact":
        return Cut("last")
    return Cut("whole", multiples)


def _read(source: Iterator[Any]) -> Iterator[Any]:
    """The elements of a dataset that was split; what it refuses is raised as our own error."""
    try:
        yield from source
    except tf.errors.InvalidArgumentError as error:
        raise refusal(error) from None


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


def _kind(spec: Any, placement: Placement) -> type:
    """What the parts of batches of `spec` are: of a static number of rows where batches are.

    A step may then ask for `x.shape[0]`, as on one device.
    """
    leaves = [s for s in tf.nest.flatten(spec) if not is_nothing(s)]
    rows = [s.shape[0] if isinstance(s, tf.TensorSpec) and s.shape.rank else None for s in leaves]
    # With one row in each part, what is made for each row looks like what is made once.
    least = 2 * placement.replicas
    divide = all(n is not None and n >= least and n % placement.replicas == 0 for n in rows)
    return _private.FixedRows if divide and rows else _private.AnyRows


def _regroup(
    parts: tuple[Any, ...],
    shares: tuple[Any, ...],
    few: tf.Tensor | None,
    kind: type = _private.AnyRows,
) -> Sharded | Starved:
    """Args: `few` is the number of rows where it is smaller than that of replicas, else None."""
    data = per_replica(parts, _private.AnyRows if few is not None else kind)
    if few is None:
        return Sharded(data, _private.AnyRows(shares))
    # The first replica has all rows, and the others the same to compute for nothing.
    real = tuple(tf.repeat(share > 0, few) for share in shares)
    return Starved(data, _private.AnyRows(shares), _private.AnyRows(real))


def _static(
    parts: tuple[Any, ...],
    shares: tuple[Any, ...],
    starved: bool,
    rows: int,
    placed: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda parts: parts,
) -> Sharded | Starved:
    """Each replica's part filled up to `rows` rows."""
    filled, real = zip(
        *(padding.padded(*part, rows) for part in zip(parts, shares, strict=True)), strict=True
    )
    kind = Starved if starved else Sharded
    data, real = per_replica(placed(filled), _private.FixedRows), placed(real)
    return kind(data, _private.PerReplica(shares), _private.FixedRows(real))


def per_replica(parts: Sequence[Any], kind: type) -> Any:
    """One nest of values of `kind` from the part of each replica; `NOTHING` where those are None.

    Args:
        parts: nests of one structure.
        kind: `PerReplica` or a subclass.
    """
    return tf.nest.map_structure(
        lambda *t: NOTHING if t[0] is None else kind(t), *parts, expand_composites=False
    )


def without_nothing(batch: Any) -> Any:
    """A nest as `per_replica` makes it, with None again where it holds `NOTHING`."""
    return tf.nest.map_structure(
        lambda v: None if isinstance(v, _private.PerReplica) and not v.values else v,
        batch,
        expand_composites=False,
    )
