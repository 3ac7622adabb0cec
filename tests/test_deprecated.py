"""Old names of options and methods work, warn where they are used, and exclude the new ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from absl import flags as absl_flags

from tfaccel import deprecated, flags
from tfaccel.errors import StrategyError
from tfaccel.hardware import Device
from tfaccel.strategies import selection
from tfaccel.strategies.options import Options, resolve

VALUES = {"accumulate": "local", "ragged": "pad", "wire": "bfloat16"}
"""A value that each deprecated option can have."""


def parsed(*argv: str, **defaults: object) -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    flags.define(flag_values=values, **defaults)
    values(["script.py", *argv])
    return values


def test_every_deprecated_option_stands_for_one_there_is() -> None:
    names = {field.name for field in dataclasses.fields(Options)}
    assert set(deprecated.OPTIONS.values()) <= names
    assert not set(deprecated.OPTIONS) & names
    assert set(deprecated.OPTIONS) == set(VALUES)


@pytest.mark.parametrize(("old", "new"), deprecated.OPTIONS.items())
def test_an_old_argument_is_the_new_one_and_warns_where_it_is_written(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"{old} is deprecated .* use {new}\.") as caught:
        options = resolve({old: VALUES[old]}, {})
    assert getattr(options, new) == VALUES[old]
    assert options == resolve({new: VALUES[old]}, {})
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(("old", "new"), deprecated.VARIABLES.items())
def test_an_old_variable_is_the_new_one_and_warns(old: str, new: str) -> None:
    value = VALUES[old.removeprefix("TFACCEL_").lower()]
    with pytest.warns(DeprecationWarning, match=rf"{old} is deprecated .* use {new}\."):
        options = resolve({}, {old: value})
    assert options == resolve({}, {new: value})


@pytest.mark.parametrize(("old", "new"), deprecated.OPTIONS.items())
def test_an_old_flag_is_the_new_one_and_warns(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"--{old} is deprecated .* use --{new}\."):
        given = flags.options(flag_values=parsed(f"--{old}={VALUES[old]}"), environ={})
    assert given == {new: VALUES[old]}


@pytest.mark.parametrize(("old", "new"), deprecated.OPTIONS.items())
def test_a_default_of_a_script_may_have_the_old_name(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"{old} is deprecated"):
        values = parsed(**{old: VALUES[old]})
    assert flags.options(flag_values=values, environ={}) == {new: VALUES[old]}


@pytest.mark.parametrize("variable", ["TFACCEL_RAGGED", "TFACCEL_PARTIAL_BATCH"])
def test_the_environment_takes_precedence_over_a_default_of_the_script(variable: str) -> None:
    values = parsed(partial_batch="drop")
    assert flags.options(flag_values=values, environ={variable: "pad"}) == {}


@pytest.mark.parametrize(("old", "new"), deprecated.OPTIONS.items())
def test_both_names_are_an_error(old: str, new: str) -> None:
    value = VALUES[old]
    both = rf"{old}='{value}' and .*{new}='{value}' were both given; expected one of them"
    with pytest.raises(StrategyError, match=both):
        resolve({old: value, new: value}, {})
    with pytest.raises(StrategyError, match=f"{old.upper()}='{value}' and .* were both given"):
        resolve({}, {f"TFACCEL_{old.upper()}": value, f"TFACCEL_{new.upper()}": value})
    with pytest.raises(StrategyError, match=both):
        flags.options(flag_values=parsed(f"--{old}={value}", f"--{new}={value}"), environ={})


@pytest.mark.filterwarnings("error")
def test_an_argument_not_given_and_an_empty_variable_are_no_use_of_an_old_name() -> None:
    assert resolve({"wire": None}, {"TFACCEL_WIRE": ""}) == resolve({}, {})


def test_an_argument_takes_precedence_over_an_old_variable() -> None:
    with pytest.warns(DeprecationWarning, match="TFACCEL_RAGGED is deprecated"):
        options = resolve({"partial_batch": "drop"}, {"TFACCEL_RAGGED": "pad"})
    assert options.partial_batch == "drop"


@pytest.mark.parametrize(
    ("given", "environ"), [({"ragged": "exact"}, {}), ({}, {"TFACCEL_RAGGED": "exact"})]
)
def test_whether_a_strategy_accepts_it_is_checked_under_the_new_name(
    given: dict[str, Any], environ: dict[str, str]
) -> None:
    devices = [Device("CPU", 0)]
    with (
        pytest.warns(DeprecationWarning, match="is deprecated"),
        pytest.raises(
            StrategyError, match="partial_batch='exact' was requested with strategy 'tpu'"
        ),
    ):
        selection.select("tpu", given, environ, devices, None)
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        found = selection.select("mirrored", given, environ, devices, None)
    assert found.options.partial_batch == "exact"


def test_an_old_method_calls_the_new_one_and_warns() -> None:
    class Counter:
        def synchronize(self, number: int, *, times: int) -> int:
            return number * times

        settle = deprecated.method("settle", "synchronize")

    made: Any = Counter()
    with pytest.warns(DeprecationWarning, match=r"settle is deprecated .* use synchronize\."):
        assert made.settle(3, times=2) == 6


def test_settle_is_synchronize(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfaccel.distribute.fit import KerasFit

    seen: list[Any] = []
    monkeypatch.setattr(KerasFit, "synchronize", lambda self, model: seen.append(model))
    strategy: Any = KerasFit()
    with pytest.warns(DeprecationWarning, match="settle is deprecated"):
        strategy.settle("model")
    assert seen == ["model"]
