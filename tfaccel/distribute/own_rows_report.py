"""Which functions of a `tf.data` pipeline every worker runs over all rows, and why, as lines."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.row_functions import maps_in_reader

_READ = {
    "interleave": "it may give any number of rows for each element",
    "flat_map": "it may give any number of rows for each element",
}
_MAPS_INSIDE = "; what it maps would run on own rows alone in a map after it"


@dataclass
class Report:
    """The functions that run over all rows, and the reasons.

    Attributes:
        lines: where a map runs over all rows.
        readers: where rows are only read, which every worker does: no loss if others are computed.
    """

    lines: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)

    def of_all(self) -> list[str]:
        """The lines where no row is computed by its worker alone: also of what reads rows."""
        return [*self.lines, *self.readers]

    def stays(self, kind: str, function: Any, why: str) -> None:
        """Notes a function."""
        self._add(self.lines, f"{kind} of {place(function)}: {why}")

    def last(self, dataset: tf.data.Dataset, hint: str = "") -> None:
        """Notes the last transformation, which the cut cannot pass.

        Args:
            dataset: what it made.
            hint: how the cut could.
        """
        found, function = _private.stage(dataset), _private.user_function(dataset)
        why = f"{found.kind} comes after it{hint}"
        if found.function is not None:
            alone = "before it would run on own rows alone"
            self.stays("map", function, f"it is after batch{hint}, and {alone}")
            why = f"the map of {place(function)} is after batch"
        self._reader(dataset)
        for each in found.inputs:
            self.all_below(each, why)

    def all_below(self, dataset: tf.data.Dataset, why: str) -> None:
        """Notes all functions of a dataset, which stay for this reason."""
        found, function = _private.stage(dataset), _private.user_function(dataset)
        if found.function is not None and not _is_of_tensorflow(function):
            self.stays("map", function, why)
        self._reader(dataset)
        for each in found.inputs:
            self.all_below(each, why)

    def _reader(self, dataset: tf.data.Dataset) -> None:
        kind, function = _private.stage(dataset).kind, _private.user_function(dataset)
        if kind == "map_and_batch" and function is not None:
            why = "it is one step with batch; a map before batch would run on own rows alone"
            self.stays(kind, function, why)
        if kind not in _READ or function is None:
            return
        if _is_of_tensorflow(function) and "from_generator" in function.__module__:
            self._add(self.readers, "generator of from_generator: it is one stream of rows")
        elif maps_in_reader(dataset):
            self.stays(kind, function, f"{_READ[kind]}{_MAPS_INSIDE}")
        else:
            self._add(self.readers, f"{kind} of {place(function)}: {_READ[kind]}")

    def _add(self, lines: list[str], line: str) -> None:
        if line not in lines:
            lines.append(line)


def _is_of_tensorflow(function: Any) -> bool:
    """Whether a function came with a method of a dataset."""
    module = getattr(function, "__module__", None) or ""
    return inspect.isfunction(function) and module.startswith("tensorflow.python.data")


def place(function: Any) -> str:
    """The location of a user's function: ``decode at train.py:40``."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    if code is None:
        return name
    return f"{name} at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
