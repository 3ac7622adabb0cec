"""The catalogue, and the strings that choose from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfaccel.errors import StrategyError
from tfaccel.planner import local_devices
from tfaccel.planner.device_catalogue import catalogue, parse
from tfaccel.tpu.topologies import GENERATIONS


def test_every_device_has_all_rates_a_source_and_a_date() -> None:
    for name, one in catalogue().items():
        assert one.usable <= one.memory, name
        assert one.bandwidth, name
        assert one.link, name
        assert one.network, name
        assert one.peak["float32"] <= max(one.peak.values()), name
        assert one.source.startswith("https://"), name
        assert one.date, name


def test_every_price_has_a_source_and_a_date() -> None:
    priced = {name: one for name, one in catalogue().items() if one.price is not None}
    assert {"T4", "A100-80", "H100", "v5e", "v6e", "EPYC-9R14"} <= set(priced)
    for name, one in priced.items():
        assert one.price_source.startswith("https://"), name
        assert one.price_date, name
    assert {one.kind for one in catalogue().values()} == {"gpu", "tpu", "cpu"}


def test_a_tpu_can_be_filled_as_far_as_its_compiler_says() -> None:
    of_one_core = {"v2", "v3", "v4", "v5e", "v5p", "v6e"}
    for name in of_one_core:
        assert catalogue()[name].usable == int(GENERATIONS[name].hbm * 2**30)


@pytest.mark.parametrize(
    ("text", "hosts", "per_host", "name"),
    [
        ("H100", 1, 1, "H100"),
        ("8xh100", 1, 8, "H100"),
        ("2x4xA100-40", 2, 4, "A100-40"),
        ("v5e-8", 1, 8, "v5e"),
        ("4xcpu", 1, 4, "cpu"),
        ("A100-80", 1, 1, "A100-80"),
    ],
)
def test_strings(text: str, hosts: int, per_host: int, name: str) -> None:
    found = parse(text, catalogue())
    assert (found.hosts, found.per_host, found.device.name) == (hosts, per_host, name)
    assert found.count == hosts * per_host


@pytest.mark.parametrize("text", ["8xH99", "", "0xH100", "H100x8", "1x2x3xH100"])
def test_what_is_none_is_told_what_there_is(text: str) -> None:
    with pytest.raises(StrategyError, match=r"expected a number and one of T4, .* 8xH100"):
        parse(text, catalogue())


def test_what_is_here_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it comes from a file in the user's cache. Logical CPUs share the rates of one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"name": "a CPU", "kind": "cpu", "count": 1, "memory": 10**9, "bandwidth": 8e9,
                "link": 1e9, "peak": {"float32": 4e10}, "date": "2026-01-01"}  # fmt: skip

    monkeypatch.setattr(local_devices, "_in_a_process", measure)
    one, four = parse("here", catalogue()), parse("4xhere", catalogue())
    assert len(calls) == 1
    assert local_devices.cache_file().is_relative_to(tmp_path)
    assert (one.count, one.device.peak["float32"], one.device.bandwidth) == (1, 4e10, 8e9)
    assert (four.count, four.device.peak["float32"], four.device.bandwidth) == (4, 1e10, 2e9)
    assert four.device.source == "measured on a CPU"


@pytest.mark.exhaustive
def test_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = parse("here", catalogue()).device
    assert device.peak["float32"] > 1e8
    assert device.bandwidth is not None
    assert device.link is not None
    assert device.bandwidth > 1e7
    assert device.link > 1e6


def test_devices_of_a_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[mine]\nkind = "gpu"\nmemory = 1e9\npeak = {float32 = 1e12}\n'
                    'source = "measured"\ndate = "2026-01-01"\n')  # fmt: skip
    found = parse("2xmine", catalogue(file)).device
    assert (found.memory, found.usable, found.bandwidth) == (10**9, 10**9, None)
    file.write_text('[mine]\nkind = "gpu"\nmemory = 1e9\n')
    with pytest.raises(StrategyError, match=r"'mine' of .* without peak, source, date"):
        catalogue(file)
    file.write_text("[mine")
    with pytest.raises(StrategyError, match="cannot be read as a catalogue"):
        catalogue(file)


MINE = """
[mine]
kind = "gpu"
memory = 24e9
peak = { float32 = 1e12 }
source = "measured"
date = 2026-01-01
"""
PRICE = """
price = 1.5
price_source = "https://example.com/prices (east)"
price_date = "2026-01-02"
"""


def test_the_price_of_a_users_device(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    found = catalogue(file)["mine"]
    assert (found.price, found.price_source, found.price_date) == (None, "", "")
    assert (found.date, found.unconfirmed) == ("2026-01-01", ())
    file.write_text(MINE + PRICE + 'unconfirmed = ["memory", "peak"]')
    found = catalogue(file)["mine"]
    assert (found.price, found.price_date) == (1.5, "2026-01-02")
    assert found.price_source == "https://example.com/prices (east)"
    assert found.unconfirmed == ("memory", "peak")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("price = 1.5", "has price without price_source and price_date, expected all three"),
        ('price = 1.5\nprice_source = "a"', "has price and price_source without price_date"),
        ('price_source = "a"\nprice_date = "b"', "has price_source and price_date without price,"),
        (PRICE.replace("1.5", "-1"), r"has price = -1, expected a positive number \(US dollars"),
        (PRICE.replace("1.5", "0"), "has price = 0, expected a positive number"),
        (PRICE.replace("1.5", "nan"), "has price = nan, expected a positive number"),
        (PRICE.replace("1.5", '"2 EUR"'), "has price = '2 EUR', expected a positive number"),
        (PRICE.replace("1.5", "true"), "has price = True, expected a positive number"),
        ('link = "fast"', r"has link = 'fast', expected a positive number \(bytes/s\)"),
        ("usable = 0", r"has usable = 0, expected a positive number \(bytes\)"),
        ('unconfirmed = ["price"]', "expected a list of memory, usable, bandwidth"),
        ("prize = 1.5", "is with prize, expected kind"),
    ],
)
def test_mistakes_in_a_file_are_one_line(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINE + text)
    with pytest.raises(StrategyError, match=says) as caught:
        catalogue(file)
    assert str(caught.value).startswith(f"tfaccel: device 'mine' of {str(file)!r} ")
    assert "\n" not in str(caught.value)
