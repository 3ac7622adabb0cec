"""The first-step check on a mesh: the step as DTensor lays it out beside that of one device.

Which operation DTensor lays out wrongly is known when it has been seen. So the first step of every
model is compared: what it returns, metrics, the state of layers, and what it leaves in weights and
in the optimizer's slots, which are the gradients' means, squares or sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfaccel.distribute.check import Marks, says, skipped
from tfaccel.distribute.compared import differences
from tfaccel.distribute.model_parallel.beside import Beside
from tfaccel.distribute.model_parallel.which_layer import first_wrong
from tfaccel.distribute.seen import CannotRunError, Seen, tolerance
from tfaccel.errors import CheckError

_LENGTH = 2000  # of a line, in all processes
_DO = (
    "keep the variables of such a layer whole by a rule of layouts=, write it with other "
    "operations, use another strategy, or leave the check out with check='off'"
)


class MeshChecks:
    """The checks of one strategy.

    Args:
        strategy: of a mesh.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._marks = Marks()

    def before(self, model: Any, function: Callable[[Any], Any], batch: Any) -> None:
        """Compares the first step of `model` since it was compiled, before it is taken.

        Args:
            model: about to train.
            function: takes the step; it is given a list of batches.
            batch: the next one.

        Raises:
            CheckError: when the mesh would make other numbers than one device.
        """
        mode = self._strategy.check
        if mode == "off" or not self._marks.is_new(model):
            return
        try:
            self._compare(model, Beside(self._strategy, model, function, batch, mode == "auto"))
        except CannotRunError as reason:
            skipped(model, reason)

    def _compare(self, model: Any, beside: Beside) -> None:
        ours = beside.on_mesh()
        found = self._chiefs(lambda: self._found(model, beside, ours))
        if found.startswith("tfaccel: "):
            raise CheckError(f"{found}; {self._layer(model, beside)}; {_DO}.")
        if found:
            raise CannotRunError(found)

    def _found(self, model: Any, beside: Beside, ours: Seen) -> str:
        """What differs, why nothing was compared, or nothing."""
        try:
            theirs = beside.on_one_device()
        except CannotRunError as reason:
            return str(reason) or "it failed"
        wrong = differences(ours, theirs, tolerance(model))
        where = f"on the mesh {self._strategy.planner.mesh}"
        return says(wrong[0], where) if wrong else ""

    def _layer(self, model: Any, beside: Beside) -> str:
        """Which layer is to blame, as far as it can be told."""
        try:
            ours = beside.layers_on_mesh()
        except Exception as reason:  # the same in all processes
            return f"which layer's output differs was not found ({type(reason).__name__})"

        def compared() -> str:
            try:
                theirs = beside.layers_on_one_device()
            except CannotRunError as reason:
                return f"which layer's output differs was not found ({reason})"
            return first_wrong(model, ours, theirs, tolerance(model))

        return self._chiefs(compared)

    def _chiefs(self, text: Callable[[], str]) -> str:
        """What `text` gives in the first process, in all of them.

        Others may round to another side of the tolerance, or have less memory.
        """
        cluster = self._strategy.cluster
        if cluster is None:
            return text()
        said = text() if cluster.is_chief else ""
        (numbers,) = self._strategy.broadcast([_as_numbers(said)])
        return _as_text(np.asarray(numbers))


def _as_numbers(text: str) -> np.ndarray:
    held = np.frombuffer(text.encode()[:_LENGTH].ljust(_LENGTH), np.uint8)
    return held.astype(np.int32)


def _as_text(numbers: np.ndarray) -> str:
    return bytes(numbers.astype(np.uint8)).decode(errors="replace").rstrip()
