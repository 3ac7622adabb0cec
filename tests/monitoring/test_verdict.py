"""The verdict, from figures alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.monitoring.given import window
from tfaccel.monitoring.run import Cause, Run
from tfaccel.monitoring.summary import slowest, summarize
from tfaccel.monitoring.verdict import BOUND, Verdict, verdict

MAP = "`map` of decode at train.py:40"


def of(*windows: Any, runs: Any = (), causes: Any = ()) -> Verdict:
    return verdict(summarize(windows), runs, causes)


@pytest.mark.parametrize(
    ("parts", "kind", "share"),
    [
        ({"input": 6, "compute": 4}, "input-bound", 0.6),
        ({"communication": 5, "compute": 4, "input": 1}, "communication-bound", 0.5),
        ({"host": 7, "compute": 3}, "host-bound", 0.7),
        ({"compute": 9, "input": 1}, "compute-bound", 0.9),
        ({"compute": 8.1, "input": 1.9}, "compute-bound", 0.81),
        ({"compute": 8, "input": 2}, "input-bound", BOUND),
        ({"compute": 4, "input": 2, "host": 2.5, "communication": 1.5}, "host-bound", 0.25),
    ],
)
def test_the_largest_part_that_can_be_avoided_names_it(
    parts: dict[str, float], kind: str, share: float
) -> None:
    found = of(window(**parts))
    assert (found.kind, found.share) == (kind, pytest.approx(share))
    assert found.sentence.startswith(kind)
    assert found.advice


def test_two_workers_that_wait_alike_are_input_bound() -> None:
    found = of(window(0, input=6, compute=4), window(1, input=5.5, compute=4, communication=0.5))
    assert found.kind == "input-bound"
    assert found.share == pytest.approx(0.55)


@pytest.mark.parametrize("part", ["compute", "input", "host"])
def test_one_worker_that_takes_longer_is_named_with_what_it_takes_longer_for(part: str) -> None:
    quick = window(0, compute=3, communication=6)
    slow = window(1, **({"compute": 9} if part == "compute" else {"compute": 3, part: 6}))
    runs = (Run(1000, 0, 2), Run(1000, 1, 2, name="10.0.0.2:99"))
    diagnosis = of(quick, slow, runs=runs)
    assert diagnosis.kind == "straggler"
    assert diagnosis.share == pytest.approx(6 / 9)
    assert "worker 1 (10.0.0.2:99) takes 900.0 ms" in diagnosis.sentence
    assert "the others 300.0 ms" in diagnosis.sentence
    words = {"compute": "computing", "input": "waiting for input", "host": "Python between steps"}
    assert diagnosis.sentence.endswith(f"most of the difference is {words[part]}.")


def test_workers_that_share_a_core_are_named_together() -> None:
    windows = [window(0, compute=5, communication=6)]
    windows += [window(r, compute=9 + r / 2, communication=2 - r / 2) for r in (1, 2)]
    runs = [Run(1000, rank, 3, name=f"10.0.0.{rank}:9") for rank in range(3)]
    found = of(*windows, runs=runs)
    assert found.kind == "straggler"
    assert found.share == pytest.approx(5 / 11)
    expected = "workers 1 (10.0.0.1:9) and 2 (10.0.0.2:9) take 1000.0 ms for their own part"
    assert expected in found.sentence
    assert "the others 500.0 ms, so they wait for them during 45 % of a step" in found.sentence
    assert "on their cores" in found.advice


def test_communication_counts_as_the_worker_that_waits_least() -> None:
    found = of(window(0, compute=4, communication=6), window(1, compute=4.5, communication=5.5))
    assert found.kind == "communication-bound"
    assert found.share == pytest.approx(0.55)


def test_the_slowest_is_told_by_its_own_work() -> None:
    found = slowest(summarize([window(r, compute=c, communication=9 - c) for r, c in OWN]))
    assert found is not None
    assert (found.worker, found.own_s, found.others_s) == (2, pytest.approx(0.8), 0.4)
    assert found.workers == (2,)


OWN = [(0, 4.0), (1, 4.0), (2, 8.0), (3, 5.0)]


@pytest.mark.parametrize(
    "windows",
    [
        [window(0, compute=5)],
        [window(0, compute=5, communication=None), window(1, compute=9, communication=None)],
        [window(0, compute=5, communication=1), window(1, compute=9, communication=None)],
    ],
)
def test_nobody_is_the_slowest_where_that_is_not_known(windows: list[Any]) -> None:
    assert slowest(summarize(windows)) is None


def test_what_is_not_measured_is_not_named() -> None:
    runs = (Run(1000, 0, 2, not_measured=("a mesh computes and communicates at once",)),)
    two = [window(r, compute=10, communication=None) for r in (0, 1)]
    found = of(*two, runs=runs)
    assert found.kind == "compute-bound"
    assert "computing and communication, which cannot be separated here" in found.sentence
    nothing = window(compute=None, input=None, communication=None, host=None, seconds=5.0)
    assert of(nothing, runs=runs).kind == "unknown"


def test_the_part_of_the_input_that_is_waited_for() -> None:
    one = window(input=6.1, compute=3.9)
    run = Run(1000, 0, input="tf.data: map", input_candidates=(MAP,), input_advice="Cache it.")
    assert str(of(one, runs=(run,))) == f"input-bound: 61 % of a step waits for {MAP}. Cache it."
    two = Run(1000, 0, input_candidates=("`map` of a", "`map` of b"))
    assert "waits for its input: one of `map` of a, `map` of b." in of(one, runs=(two,)).sentence
    timed = Cause("input", "`map` of b", 5.0, 10)
    assert "waits for `map` of b." in of(one, runs=(two,), causes=(timed,)).sentence
    assert "waits for its input (arrays)" in of(one, runs=(Run(1, 0, input="arrays"),)).sentence
    assert "waits for its input." in of(one).sentence


def test_the_callback_that_takes_most_is_named_if_it_takes_most_of_the_time() -> None:
    one = window(host=6, compute=4)
    large = Cause("host", "in Logs.on_train_batch_end at train.py:9", 20.0, 40)
    diagnosis = of(one, causes=(Cause("host", "in A.on_train_batch_end", 1.0, 40), large))
    assert diagnosis.sentence.endswith("most of it in Logs.on_train_batch_end at train.py:9.")
    small = Cause("host", "in Logs.on_train_batch_end at train.py:9", 2.0, 40)
    assert "most of it" not in of(one, causes=(small,)).sentence


def test_the_advice_names_the_transport_that_could_be_another() -> None:
    one = [window(r, compute=2, communication=8) for r in (0, 1)]
    ring = Run(1000, 0, 2, devices=("CPU:0",), communication="ring")
    assert "tfaccel[mpi]" in of(*one, runs=(ring,)).advice
    for other in (
        Run(1000, 0, 2, devices=("CPU:0",), communication="mpi"),
        Run(1000, 0, 2, devices=("GPU:0",), communication="ring"),
    ):
        assert "tfaccel[mpi]" not in of(*one, runs=(other,)).advice
        assert "gradient_compression" in of(*one, runs=(other,)).advice


def test_windows_that_compile_count_only_where_there_are_no_others() -> None:
    compiles = window(number=0, compute=90, input=10)
    again = window(number=2, compute=50, traces=1)
    steady = window(number=1, input=9, compute=1)
    assert of(compiles, steady, again).share == pytest.approx(0.9)
    assert of(compiles).kind == "compute-bound"
    assert of().kind == "unknown"


def test_the_part_of_the_peak_is_said_where_it_is_known() -> None:
    one = window(compute=10, flops=3e9, peak_flops=6e9)  # ten steps in ten seconds
    assert of(one).sentence.endswith("50 % of the devices' peak is used.")
    assert "peak" not in of(window(compute=10, flops=3e9)).sentence
