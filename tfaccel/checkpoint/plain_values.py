"""Objects as text and arrays, which a file can hold without pickle."""

from __future__ import annotations

import collections
import hashlib
import importlib
import json
import random
import sys
import types
from typing import Any

import numpy as np

_PLAIN = (type(None), bool, int, float, str)
_KEY = "__kind__"
_NUMBERS = frozenset(
    {"bool", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
)
_LIBRARIES = ("keras", "numpy")  # whose functions are stored by name


class NotPlainError(Exception):
    """A value that cannot be stored in a file."""


def encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value in JSON form.

    Args:
        value: numbers, texts, arrays, states of random generators, and lists, tuples, sets and
            dictionaries of them.
        arrays: collects its arrays, which the JSON leaves out.

    Raises:
        NotPlainError: it contains anything else.

    >>> arrays = []
    >>> made = encode({"best": (1.5, np.zeros(2)), 3: float("inf")}, arrays)
    >>> decode(made, arrays)
    {'best': (1.5, array([0., 0.])), 3: inf}
    """
    if type(value) in _PLAIN:
        return value
    if type(value) is list:
        return [encode(v, arrays) for v in value]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in _NUMBERS:
        arrays.append(np.asarray(value))
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {_KEY: kind, "at": len(arrays) - 1}
    if isinstance(value, dict):
        pairs = [[encode(k, arrays), encode(v, arrays)] for k, v in value.items()]
        return {_KEY: "dict", "items": pairs}
    if type(value) is collections.deque:
        items = [encode(v, arrays) for v in value]
        return {_KEY: "deque", "items": items, "maxlen": value.maxlen}
    if type(value) in (tuple, set):
        return {_KEY: type(value).__name__, "items": [encode(v, arrays) for v in value]}
    if type(value) is random.Random:
        return {_KEY: "Random", "state": encode(value.getstate(), arrays)}
    if type(value) is np.random.Generator:
        bits = value.bit_generator
        return {_KEY: "Generator", "of": type(bits).__name__, "state": encode(bits.state, arrays)}
    if type(value) is np.random.RandomState:
        return {_KEY: "RandomState", "state": encode(value.get_state(), arrays)}
    if isinstance(value, types.FunctionType) and _is_library_s(value):
        return {_KEY: "function", "name": f"{value.__module__}:{value.__qualname__}"}
    raise NotPlainError(type(value).__name__)


def decode(encoded: Any, arrays: list[np.ndarray]) -> Any:
    """The inverse of `encode`."""
    if isinstance(encoded, list):
        return [decode(v, arrays) for v in encoded]
    if not isinstance(encoded, dict):
        return encoded
    kind = encoded[_KEY]
    if kind == "array":
        return arrays[encoded["at"]].copy()
    if kind == "number":
        return arrays[encoded["at"]][()]
    if kind == "function":
        module, _, name = encoded["name"].partition(":")
        if module.partition(".")[0] not in _LIBRARIES:
            raise NotPlainError(encoded["name"])
        return getattr(importlib.import_module(module), name)
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in encoded["items"]}
    if kind == "deque":
        return collections.deque((decode(v, arrays) for v in encoded["items"]), encoded["maxlen"])
    if kind in ("tuple", "set"):
        return (tuple if kind == "tuple" else set)(decode(v, arrays) for v in encoded["items"])
    state = decode(encoded["state"], arrays)
    if kind == "Generator":
        bits = getattr(np.random, encoded["of"])()
        bits.state = state
        return np.random.Generator(bits)
    generator: Any = random.Random() if kind == "Random" else np.random.RandomState()
    (generator.setstate if kind == "Random" else generator.set_state)(state)
    return generator


def fingerprint(value: Any) -> Any:
    """A fingerprint, the same for equal values.

    Raises:
        NotPlainError: it contains something that `encode` does not accept.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(encode(value, arrays))
    return text, [(a.shape, hashlib.sha256(a.tobytes()).digest()) for a in arrays]


def _is_library_s(function: types.FunctionType) -> bool:
    """Whether a function is found by its name in a library: `keras.ops.less` of a callback."""
    module, name = function.__module__ or "", function.__qualname__
    if module.partition(".")[0] not in _LIBRARIES:
        return False
    return getattr(sys.modules.get(module), name, None) is function
