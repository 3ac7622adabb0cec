"""Old names of public options and methods: each works for one version, and warns.

To rename an option, add it to `OPTIONS`; its argument, flag and environment variable follow.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tfaccel.errors import StrategyError

OPTIONS = {
    "accumulate": "gradient_accumulation",
    "ragged": "partial_batch",
    "wire": "gradient_compression",
}
"""Options of `tfaccel.strategy`, old name to new."""

FLAGS = {f"--{old}": f"--{new}" for old, new in OPTIONS.items()}
VARIABLES = {f"TFACCEL_{old.upper()}": f"TFACCEL_{new.upper()}" for old, new in OPTIONS.items()}


def renamed(supplied: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """The values under their current names; every deprecated name in use warns.

    Args:
        supplied: values by name; None and ``""`` count as not given.
        table: old name to new.

    Raises:
        StrategyError: when a value is given under both names.

    >>> renamed({"partial_batch": "pad", "seed": 1}, OPTIONS)
    {'partial_batch': 'pad', 'seed': 1}
    """
    values = {name: value for name, value in supplied.items() if name not in table}
    for old, new in table.items():
        value = supplied.get(old)
        if value is None or value == "":
            continue
        if values.get(new) not in (None, ""):
            raise StrategyError(
                f"tfaccel: {old}={value!r} and {new}={values[new]!r} were both given; expected "
                f"one of them: {old} is the deprecated name of {new}; leave it out."
            )
        warn(old, new)
        values[new] = value
    return values


def method(old: str, new: str) -> Callable[..., Any]:
    """A method under its old name: it warns, and calls the new one."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn(old, new)
        return getattr(self, new)(*args, **kwargs)

    call.__name__ = old
    call.__doc__ = f"Deprecated: use `{new}`."
    return call


def warn(old: str, new: str) -> None:
    """Warns of a deprecated name where code outside tfaccel uses it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tfaccel"):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"tfaccel: {old} is deprecated and will be removed in the next version; use {new}.",
        DeprecationWarning,
        stacklevel=level,
    )
