"""Per-worker datasets: each worker passes its own part of the global batch.

Under ``input="per_worker"`` a script shards its files or rows (`dataset.shard`, a file for each
worker), and a global batch is the union of the workers' batches. No worker reads another's rows.
The workers exchange their numbers of rows before each step, with one small collective, since
gradients are weighted by rows: batch sizes may differ between workers. A worker whose data end
early participates with rows of zero weight, so that each row trains once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, dataset_consistency
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Batches, exact_batch, numbers_of_rows, padded_batch
from tfaccel.errors import InputError

AllGather = dataset_consistency.AllGather

_warned = False


class PerWorkerBatches(Batches):
    """Global batches of which every worker reads only its own rows.

    Args:
        dataset: of the batches of this worker.
        placement: which of all replicas are ours.
        devices: of our replicas.
        partial_batch: as in `Batches`.
        threads: as in `Batches`.
        multiples: as in `Batches`.
        alike: as in `Batches`.
        all_gather: gives the numbers of every worker, in the order of their ranks.
        inspected: as in `Batches`.

    Raises:
        InputError: on every worker, when the elements of their datasets have different types or
            shapes.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        placement: Placement,
        devices: tuple[str, ...],
        partial_batch: str,
        threads: Any,
        multiples: bool,
        alike: bool,
        all_gather: AllGather,
        inspected: bool,
    ) -> None:
        own = Placement(1, 0, placement.local)
        super().__init__(
            dataset, own, devices, partial_batch, threads, multiples, alike, inspected=inspected
        )
        dataset_consistency.check_elements(dataset, all_gather)
        self._gather = all_gather
        self._rank = placement.rank
        rows = _static_rows(dataset.element_spec) if self._static_rows else 0
        self._static_rows = rows > 0 and all_gather([rows]) == [[rows]] * placement.workers

    def _placed(self, elements: Iterator[Any]) -> Iterator[Any]:
        number, filler = 0, None
        while True:
            element = next(elements, None)
            own = [0] * self._placement.local
            if element is not None:
                own = _rows_of_replicas(int(element[2]), self._placement.local)
            every = self._gather([int(element is not None), *own])
            if not any(more for more, *_ in every):
                return
            _check_all_have_had_one(number, every)
            rows = [each[1:] for each in every]
            if element is not None:
                if number == 0:  # on every worker
                    _check_first_batches(element[0], self._gather)
                parts, filler = element[0], _one_row(element[0], filler)
            elif filler is not None:
                parts = (filler,) * self._placement.local
            number += 1
            batch = self._combined(parts, rows)
            if batch is not None:
                batch.global_rows = sum(map(sum, rows))
                yield batch

    def _combined(self, parts: tuple[Any, ...], rows: list[list[int]]) -> Any:
        """The batch on our devices, or None when it is to be dropped.

        Args:
            parts: of each of our replicas.
            rows: how many the replicas of each worker have.
        """
        total, most = sum(map(sum, rows)), max(map(max, rows))
        has_empty = min(map(min, rows)) == 0
        own = rows[self._rank]
        if own[0]:
            self._check_proportion(parts[0])
        fractions = [tf.constant(each / max(total, 1), tf.float32) for each in own]
        if self._partial_batch == "exact" and not has_empty:
            return exact_batch(self._on_devices(parts), fractions, None, self._static_rows)
        if self._partial_batch == "drop" and total < self._rows:
            return None
        self._rows = max(self._rows, total)
        self._most = max(self._most, most)
        _refuse_proportions(parts[0])
        local = self._most if self._partial_batch != "exact" else most
        return padded_batch(parts, fractions, local, has_empty, self._on_devices)

    _most = 0  # most rows of a replica so far


def agree_on_length(epoch: Any, all_gather: AllGather) -> None:
    """Makes Keras's epochs equally long on every worker: as long as the longest.

    Args:
        epoch: Keras's iterator over the steps of an epoch.
        all_gather: gives the numbers of every worker, in the order of their ranks.
    """
    length = _private.number_of_batches(epoch)
    every = [each for (each,) in all_gather([-1 if length is None else length])]
    if len(set(every)) > 1:
        _private.set_number_of_batches(epoch, None if -1 in every else max(every))


def _rows_of_replicas(rows: int, replicas: int) -> list[int]:
    """As `shard_batch` splits them.

    >>> _rows_of_replicas(5, 2)
    [3, 2]
    """
    return [rows // replicas + (replica < rows % replicas) for replica in range(replicas)]


def _static_rows(spec: Any) -> int:
    return next((s.shape[0] for s in tf.nest.flatten(spec) if getattr(s, "shape", None)), 0)


def _one_row(parts: tuple[Any, ...], before: Any) -> Any:
    """A row to compute with zero weight when there are no more; `before` if it has none."""
    if before is not None and not all(numbers_of_rows(parts[0])):
        return before
    return tf.nest.map_structure(lambda t: None if t is None else t[:1], parts[0])


def _check_all_have_had_one(number: int, every: list[list[int]]) -> None:
    without = [str(rank) for rank, (more, *_) in enumerate(every) if not more]
    if number == 0 and without:
        raise InputError(
            f"tfaccel: worker {', '.join(without)} has no batch at all and others have, expected "
            "data on every worker under input='per_worker'; shard into as many parts as workers."
        )


def _refuse_proportions(part: Any) -> None:
    found = numbers_of_rows(part)
    if len(set(found)) > 1:
        raise InputError(
            f"tfaccel: the components of a batch have {', '.join(map(str, found))} rows, but at "
            "least one replica's shard is empty; expected the same batch dimension in all "
            "components, which input='per_worker' needs when workers have different numbers of "
            "batches; give each worker the same number."
        )


def _check_first_batches(parts: Any, all_gather: AllGather) -> None:
    """Warns when every worker's first batch has the same values."""
    global _warned
    gathered = all_gather(dataset_consistency.fingerprints(parts).numpy().tolist())
    if _warned or any(leaf != gathered[0] for leaf in gathered[1:]):
        return
    _warned = True
    logging.warning(
        "tfaccel: input='per_worker': the first batch has the same values on every worker, "
        "expected that each reads rows of its own. If all read the same, every row trains "
        "once for each worker: shard the dataset (dataset.shard), or leave the option out."
    )
