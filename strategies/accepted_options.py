"""Which options a strategy accepts: each factory declares its own; a check rejects the rest."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tfaccel.errors import StrategyError
from tfaccel.strategies.options import Options

Accepted = Mapping[str, Sequence[Any] | None]
"""The values of each option by its name; None for every value that the option can have."""

ANY = None

_ALSO = {"data_service": "data workers", "profile": "a profile"}
"""What the options are that the launcher sets for every script."""

COMMON: Accepted = dict.fromkeys(
    (
        "devices",
        "device_type",
        "precision",
        "xla",
        "memory_growth",
        "seed",
        "deterministic",
        "start_timeout",  # the launcher sets it for every script
        "check",
        "batch_norm",
        "rematerialization",
    ),
    ANY,
)
"""Options of every strategy, and those that have no effect on one device and meshes."""


def check(name: str, factories: Mapping[str, str], options: Options) -> None:
    """Rejects an option that strategy `name` does not accept, or not with that value.

    Args:
        name: a strategy's name.
        factories: the module of each strategy, with its `ACCEPTS`.
        options: what was requested; an option with its default value counts as not requested.

    Raises:
        StrategyError: names the option, and the strategies that accept it.
    """
    accepted = accepted_by(factories[name])
    for field in fields(Options):
        value = getattr(options, field.name)
        if value is field.default or value == field.default:
            continue
        values = accepted.get(field.name, ())
        if values is ANY or value in values:
            continue
        if values:
            expected = f"expected {' or '.join(map(repr, values))}; or leave it out."
        else:
            takers = [n for n, m in factories.items() if accepted_by(m).get(field.name, ()) != ()]
            expected = (
                f"which does not accept it; use {' or '.join(map(repr, takers))}, or leave it out."
            )
        also = f" ({_ALSO[field.name]})" if field.name in _ALSO else ""
        raise StrategyError(
            f"tfaccel: {field.name}={value!r}{also} was requested with strategy {name!r}, "
            f"{expected}"
        )


def accepted_by(module: str) -> Accepted:
    """What the factory in `module` accepts."""
    accepted: Accepted = importlib.import_module(module).ACCEPTS
    return accepted
