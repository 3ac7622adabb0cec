"""A `PyDataset` is asked for a worker's own rows: the same global batches, row by row."""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.pages import SIZES, Named, Pages, Whole
from tfaccel.distribute import _private, batch_rows, batches
from tfaccel.distribute.batch_rows import PyDatasetRows, adapter_of
from tfaccel.distribute.batch_sharding import (
    Placement,
    ShardingOptions,
    own_numbers,
    shard_batch,
)
from tfaccel.distribute.dataset_sharding import shard_rows_of
from tfaccel.errors import InputError

RARE = pytest.mark.exhaustive


def adapter(dataset: Any, **options: Any) -> Any:
    """Keras's, when it has seen the shapes of the first batches."""
    made = _private.PyDatasetAdapter(dataset, **options)
    made.get_tf_dataset()
    return made


def own_rows(given: Any, placement: Placement, undersized: str = "whole") -> PyDatasetRows:
    ours = functools.partial(own_numbers, placement=placement, sharding=ShardingOptions(undersized))
    return PyDatasetRows(given, ours)


def parts_of(dataset: Any, placement: Placement, undersized: str, **options: Any) -> list[Any]:
    """The parts, fractions, rows and index of each batch of one pass."""
    made = adapter(dataset, **options)
    own = own_rows(made, placement, undersized)
    sharding = ShardingOptions(undersized)
    found = shard_rows_of(own.dataset, placement, sharding)
    if made.enqueuer is not None:
        made.on_epoch_begin()
    return list(own.elements(iter(found)))


def gathered(ranks: list[list[Any]], local: int) -> list[Any]:
    """The global batches, put together from the parts of all replicas of all workers."""
    found = []
    for elements in zip(*ranks, strict=True):
        replicas = [(each, replica) for replica in range(local) for each in elements]
        counted = [each[0][replica] for each, replica in replicas if float(each[1][replica])]
        found.append(tf.nest.map_structure(lambda *leaves: tf.concat(leaves, 0), *counted))
    return found


@pytest.mark.parametrize("undersized", ["none", "whole", "last"])
def test_the_numbers_of_own_rows_are_those_that_a_batch_is_cut_by(undersized: str) -> None:
    sharding = ShardingOptions(undersized)
    for workers, local in ((1, 1), (2, 1), (2, 2), (3, 2)):
        for rank in range(workers):
            placement = Placement(workers, rank, local)
            for rows in range(11):
                parts, *_ = shard_batch(tf.range(rows, dtype=tf.int64), placement, sharding)
                expected = sorted({int(row) for part in parts for row in part})
                assert own_numbers(rows, placement, sharding).tolist() == expected


@pytest.mark.parametrize(
    ("workers", "local", "undersized", "sizes"),
    [
        (2, 1, "whole", SIZES),
        (3, 2, "last", (8, 3)),
        pytest.param(3, 2, "whole", (8, 3), marks=RARE),
        pytest.param(2, 2, "last", SIZES, marks=RARE),
        pytest.param(4, 1, "whole", (3, 9, 2), marks=RARE),
    ],
)
@pytest.mark.parametrize(("cls", "threads"), [(Named, 1), (Pages, 3)])
def test_global_batches_are_the_same_row_by_row(
    workers: int, local: int, undersized: str, sizes: Any, cls: Any, threads: int
) -> None:
    ranks = [
        parts_of(cls(sizes, threads=threads), Placement(workers, rank, local), undersized)
        for rank in range(workers)
    ]
    whole = list(map(cls(sizes).__getitem__, range(len(sizes))))
    assert [[int(rows) for _, _, rows, *_ in rank] for rank in ranks] == [list(sizes)] * workers
    for found, expected in zip(gathered(ranks, local), whole, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, found, expected)
    for number, rows in enumerate(sizes):  # of a cut batch
        for rank in range(workers):
            expected = shard_batch(
                tf.range(rows), Placement(workers, rank, local), ShardingOptions(undersized)
            )
            assert ranks[rank][number][1].numpy().tolist() == expected[1].numpy().tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_computes_its_own_rows_alone(threads: int) -> None:
    dataset, place = Pages(threads=threads), Placement(2, 1, 1)
    parts_of(dataset, place, "whole")
    looks = [*range(16), *range(8)]  # Keras's of two batches, and one to compare
    own = [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 26, 27]
    # Those of batch 0 are asked for once more, to compare, and the first rows of each pass.
    assert sorted(dataset.computed) == sorted([*looks, *own[:4], *own, *range(8)])


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_shuffled_as_keras_shuffles_them(threads: int) -> None:
    def indices(rank: int) -> list[int]:
        random.seed(5)
        dataset = Pages(threads=threads)
        made = parts_of(dataset, Placement(2, rank, 1), "whole", shuffle=True)
        assert [len(order) for *_, order in made] == [3, 0, 0, 0]
        firsts = [int(parts[0][0][0, 0]) for parts, *_ in made]
        return [int(i) for i in np.searchsorted(np.cumsum(SIZES), firsts, side="right")]

    random.seed(5)
    order = list(range(len(SIZES)))
    random.shuffle(order)
    assert indices(0) == indices(1) == order


def test_weights_of_classes_are_those_of_own_rows() -> None:
    (first, *_) = parts_of(Pages(), Placement(2, 1, 1), "whole", class_weight={0: 1.0, 1: 3.0})
    _, y, weights = first[0][0]
    assert y.numpy().ravel().tolist() == [0, 1, 0, 1]
    assert weights.numpy().tolist() == [1.0, 3.0, 1.0, 3.0]


def test_ragged_and_text_rows() -> None:
    class Texts(Pages):
        def made_of(self, chosen: Any) -> Any:
            rows = tf.RaggedTensor.from_row_lengths(np.repeat(chosen, chosen), chosen)
            return {"ragged": rows, "text": tf.constant([f"row {i}" for i in chosen])}

    found = parts_of(Texts((5, 3)), Placement(1, 0, 2), "whole")
    (first, second), *_ = found[0]
    assert first["ragged"].to_list() == [[], [1], [2, 2]]
    assert second["ragged"].to_list() == [[3] * 3, [4] * 4]
    assert second["text"].numpy().tolist() == [b"row 3", b"row 4"]


class TooFew(Pages):
    """Loses a row of the second batch."""

    def get_rows(self, index: int, rows: Any) -> Any:
        return super().get_rows(index, rows[1:] if index == 1 and len(rows) < 8 else rows)


class TooMany(Pages):
    """Gives all rows of a batch."""

    def get_rows(self, index: int, rows: Any) -> Any:
        return super().get_rows(index, np.arange(self.sizes[index]))


class Miscounted(Pages):
    """Says that it has more rows."""

    def batch_rows(self, index: int) -> int:
        return 9


class Unlike(Pages):
    """Leaves a part out."""

    def get_rows(self, index: int, rows: Any) -> Any:
        found = super().get_rows(index, rows)
        return found if len(rows) == 8 else found[0]


class Narrow(Pages):
    """Leaves a column out."""

    def get_rows(self, index: int, rows: Any) -> Any:
        x, y = super().get_rows(index, rows)
        return (x, y) if len(rows) == 8 else (x[:, 1:], y)


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (TooMany, r"get_rows\(0, rows\) of PyDataset TooMany returned a part of 8 rows for 4 "),
        (Miscounted, r"batch_rows\(0\) of PyDataset Miscounted returned 9 and batch 0 has .* 8 "),
        (Unlike, r"get_rows\(0, rows\) of PyDataset Unlike returned 1 arrays and batch 0 has 2"),
        (
            Narrow,
            r"of PyDataset Narrow returned rows of shape \(2,\) and those of batch 0 have \(3,\)",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(cls: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        parts_of(cls(), Placement(2, 0, 1), "whole")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_later_batch_lacks_is_one_line(threads: int) -> None:
    made = adapter(TooFew(threads=threads))
    given = batches.Batches(
        made.get_tf_dataset(),
        Placement(2, 0, 1),
        ("/CPU:0",),
        threads=made.enqueuer,
        py_dataset=made,
    )
    if made.enqueuer is not None:
        made.on_epoch_begin()
    says = r"get_rows\(1, rows\) of PyDataset TooFew returned a part of 3 rows for 4 positions"
    with pytest.raises(InputError, match=says) as raised:
        list(given)
    assert "\n" not in str(raised.value)


def test_other_values_than_the_batch_s_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class Shifted(Pages):
        def get_rows(self, index: int, rows: Any) -> Any:
            return super().get_rows(index, rows if len(rows) == 8 else rows - 1)

    monkeypatch.setattr(batch_rows, "_warned", False)
    with caplog.at_level("WARNING", logger="absl"):
        parts_of(Pages(), Placement(2, 1, 1), "whole")
        assert caplog.text == ""
        parts_of(Shifted(), Placement(2, 1, 1), "whole")
    assert "get_rows(0, rows) of PyDataset Shifted returned other values" in caplog.text


def test_workers_whose_orders_differ_are_told_so(caplog: Any) -> None:
    own = own_rows(adapter(Pages()), Placement(2, 0, 1))

    def check(*workers: list[int]) -> None:
        own.check_order(tf.constant(workers[0]), lambda numbers: list(workers))

    with pytest.raises(InputError, match=r"begins with batch 3, 1 \(by rank\) of PyDataset Pages"):
        check([3, 7, 8], [1, 7, 8])
    says = "a pass begins with other values on each worker of PyDataset Pages"
    with caplog.at_level("WARNING", logger="absl"):
        check([3, 7, 8], [3, 6, 8])  # one part is noise
        assert says not in caplog.text
        for _ in range(2):
            check([3, 7, 8], [3, 6, 9])
    assert caplog.text.count(says) == 1


def test_what_cannot_be_asked_for_rows_is_read_whole_and_the_log_says_so(caplog: Any) -> None:
    def asked(data: Any) -> Any:
        return adapter_of(SimpleNamespace(epoch=SimpleNamespace(data_adapter=data)))

    with caplog.at_level("INFO", logger="absl"):
        assert asked(adapter(Whole())) is None
        line = "every worker computes all rows of PyDataset Whole: it has no batch_rows."
        assert line in caplog.text
        caplog.clear()
        can = adapter(Pages())
        assert asked(can) is can
        assert asked(object()) is None
        assert caplog.text == ""
