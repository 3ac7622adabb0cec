"""What of a check needs no compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tfaccel import tpu
from tfaccel.errors import StrategyError
from tfaccel.tpu.report import UNKNOWN, Collective, Memory, Report
from tfaccel.tpu.search import largest
from tfaccel.tpu.topologies import GENERATIONS, parse


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("v5e:2x2", "v5e:2x2", 4),
        ("V6E", "v6e:2x2", 4),
        ("v4", "v4:2x2x1", 4),
        ("v3:1x1", "v3:1x1", 2),
        ("v5p:2x2x2", "v5p:2x2x2", 8),
        ("tpu7x:1x1x1", "tpu7x:1x1x1", 2),
    ],
)
def test_topologies(text: str, name: str, devices: int) -> None:
    found = parse(text)
    assert (str(found), found.devices) == (name, devices)
    assert found.hbm == int(GENERATIONS[found.generation].hbm * 2**30)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5litepod-8", "topology 'v5litepod-8' is unknown; expected one of v2, v3, v4, v5e"),
        ("v4:2x2", r"has the grid '2x2'; expected 3 numbers, such as v4:2x2x1"),
        ("v5e:2x0", r"has the grid '2x0'; expected 2 numbers"),
        ("v5e:a", "has the grid 'a'"),
    ],
)
def test_topologies_that_are_none(text: str, says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        parse(text)


@pytest.mark.parametrize(("most", "found"), [(1024, 512), (100, 96), (4, 4), (3, 0)])
def test_the_search_takes_few_steps(most: int, found: int) -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        assert rows % 4 == 0
        return rows <= most

    got = largest(fits, 1024, 4)
    assert len(tried) <= 6
    assert got <= most
    assert got >= 0.75 * found
    assert (got == 0) == (found == 0)


def test_a_batch_must_divide() -> None:
    with pytest.raises(
        StrategyError, match=r"a batch of 6 .* the 4 devices of v5e:2x2; expected a multiple of 4"
    ):
        tpu.check("nothing.py:f", 6, "v5e:2x2")


def test_the_error_names_the_extra_to_install(monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StrategyError, match=r"jax and libtpu is not .*tpu-check\]' \(Python 3\.11"):
        tpu.check("nothing.py:f", 4)


def test_the_batch_size_is_required(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        tpu.main(["check", "nothing.py:f"])
    assert ended.value.code == 2
    assert "the following arguments are required: --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--input-shape", "a,3"], "'a,3'; expected sizes, such as 224,224,3"),
        (["--input-shape", "0"], "'0'; expected sizes"),
        (["--dtype", "string"], "'string'; expected one of float32, bfloat16"),
        (["--timeout", "-1"], "'-1'; expected more than 0"),
    ],
)
def test_words_that_mean_nothing(capsys: Any, words: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as ended:
        tpu.main(["check", "nothing.py:f", "--batch", "8", *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_second_check_waits_for_the_first_and_no_file_is_left(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    alone = sys.modules["tfaccel.tpu.check"]._exclusive
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    order = []

    def second() -> None:
        with alone():
            order.append("second")

    with alone():
        thread = threading.Thread(target=second)
        thread.start()
        while "another check runs on this machine; waiting for it" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


REPORT = Report(
    "m.py:f",
    "v5e:2x2",
    64,
    parameters=1234,
    needed=3 << 30,
    memory=Memory(2 << 30, 1 << 20, 1 << 30, 5 << 20, 0),
    flops=2.5e9,
    collectives=(Collective("all-reduce", 2, 3_000_000),),
    seconds=4.0,
    warnings=("look out",),
    notes=("assumed",),
)


def test_a_report_is_complete() -> None:
    said = "\n".join(REPORT.lines())
    assert (
        "m.py:f on v5e:2x2 (4 devices), global batch 64 (16 per device), 1,234 parameters" in said
    )
    assert "3.01 GiB of 15.75 GiB per device" in said
    assert "2.50 GFLOP" in said
    assert "2 all-reduce of 3.00 MB" in said
    assert "look out" in said
    assert "assumed" in said
    assert all(line in said for line in UNKNOWN)


def test_unreadable_collectives_are_reported_as_unknown() -> None:
    unread = dataclasses.replace(REPORT, collectives=None)
    assert "collectives not known" in "\n".join(unread.lines())
    assert Report.of(dataclasses.asdict(unread)) == unread


def test_a_report_survives_json() -> None:
    found = json.loads(REPORT.to_json())
    assert found.pop("limit") == REPORT.limit
    assert found.pop("unknown") == list(UNKNOWN)
    assert Report.of(found) == REPORT


@pytest.mark.parametrize(
    ("fitting", "says"),
    [
        (None, "TOO BIG: 4.25 GiB missing on each device"),
        (32, "each device; a global batch of 32 fits"),
        (0, "each device; no batch fits: split the model"),
    ],
)
def test_a_program_that_does_not_fit_reports_by_how_much(fitting: int | None, says: str) -> None:
    found = Report("m", "v5e:1x1", 64, verdict="too big", needed=20 << 30, fitting=fitting)
    assert says in found.lines()[1]


def test_small_numbers_are_not_rounded_to_nothing() -> None:
    small = Memory(2048, 0, 3 << 20, 0, 0)
    said = "\n".join(Report("m", "v5e:1x1", 8, memory=small, flops=54_321).lines())
    assert "weights, slots and batch 2.0 KiB" in said
    assert "operations  0.05 MFLOP" in said


def test_a_compiler_that_gives_no_number_is_not_given_one() -> None:
    said = Report("m", "v5e:1x1", 8, verdict="too big").lines()[1]
    assert said == "TOO BIG: the compiler does not report how much is missing"
