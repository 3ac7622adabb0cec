"""Writes YAML: mappings, lists and scalars, in block style.

Only text that no YAML 1.1 or 1.2 parser can misread is left unquoted: ``no``, ``1e3`` and ``0x10``
are strings here and are quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*([:][A-Za-z0-9_./-]+)*")
_OTHER_TYPES = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"}


def dump(*documents: Any) -> str:
    """The text of one or several documents.

    >>> print(dump({"name": "a", "list": [{"x": 1, "y": "no"}, "b"], "empty": {}}), end="")
    name: a
    list:
    - x: 1
      "y": "no"
    - b
    empty: {}
    """
    return "---\n".join("".join(f"{line}\n" for line in _lines(one)) for one in documents)


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _entry(f"{_scalar(str(key))}:", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for inner in value:
            first, *rest = _lines(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, str) and _is_block(value):
        yield f"{key} |"
        yield from (f"  {line}" if line else "" for line in value[:-1].split("\n"))
        return
    lines = list(_lines(value))
    if isinstance(value, (Mapping, list, tuple)) and value:
        yield key
        yield from (f"  {line}" if isinstance(value, Mapping) else line for line in lines)
    else:
        yield f"{key} {lines[0]}"


def _is_block(text: str) -> bool:
    """Whether a text of whole lines can be a literal block."""
    lines = text.split("\n")
    return (
        len(lines) > 1
        and lines[-1] == ""
        and bool(lines[-2])
        and lines[0][:1] not in ("", " ", "\t")
        and all(line.isprintable() and "\ufeff" not in line for line in lines)
    )


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _OTHER_TYPES
        return value if plain else _quoted(value)
    return json.dumps(value)


def _quoted(text: str) -> str:
    """A JSON string, except beyond the Basic Multilingual Plane, where JSON writes surrogates."""
    escaped = "".join(json.dumps(c)[1:-1] if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
