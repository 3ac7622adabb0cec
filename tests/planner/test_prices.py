"""What candidates cost, at the price of a device in a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tfaccel
from tests.planner import builders
from tfaccel.planner.plan import Plan
from tfaccel.planner.plan_command import main

TARGET = f"{builders.__file__}:mlp"
BATCH = 64
FREE = """
[mine]
kind = "gpu"
memory = 1e9
bandwidth = 1e9
link = 1e9
peak = { float32 = 1e12 }
source = "made up"
date = "2026-01-01"
"""
PRICED = (
    FREE
    + """
price = 1.8
price_source = "a list"
price_date = "2026-01-02"
"""
)


def _file(tmp_path: Path, text: str) -> str:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return str(file)


def _plan(file: str) -> Plan:
    return tfaccel.plan(builders.mlp, devices="2xmine", batch_size=BATCH, device_file=file)


def test_the_devices_used_times_their_price_and_the_time_of_a_step(tmp_path: Path) -> None:
    found = _plan(_file(tmp_path, PRICED))
    listed = found.to_dict()["candidates"]
    assert {one.candidate.devices for one in found.estimates} == {1, 2}
    for one, told in zip(found.estimates, listed, strict=True):
        assert one.time is not None
        assert told["price"]["hour"] == 1.8 * one.candidate.devices
        seconds = one.time.total * 1e6 / BATCH  # of a million rows
        dollars = 1.8 / 3600 * one.candidate.devices * seconds
        assert told["price"]["million_rows"] == pytest.approx(dollars)
    assert found.to_dict()["recommended"]["price"] in [told["price"] for told in listed]


def test_the_step_time_may_be_unknown(tmp_path: Path) -> None:
    found = _plan(_file(tmp_path, PRICED.replace("bandwidth = 1e9\n", "")))
    prices = [told["price"] for told in found.to_dict()["candidates"]]
    assert prices[:2] == [{"hour": 1.8, "million_rows": None}, {"hour": 3.6, "million_rows": None}]


@pytest.mark.parametrize("priced", [True, False])
def test_columns_only_where_there_is_a_price(
    priced: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file(tmp_path, PRICED if priced else FREE)
    words = [TARGET, "--devices", "2xmine", "--batch", str(BATCH), "--device-file", file]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in (
        "$/hour",
        "$/M rows",
        "1.80",
        "3.60",
        "1.8 US dollars an hour for one mine: a list",
    ):
        assert (part in said) is priced
    assert ("price" in said) is priced
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"]["price"] == (1.8 if priced else None)
    assert all((one["price"] is not None) is priced for one in told["candidates"])
