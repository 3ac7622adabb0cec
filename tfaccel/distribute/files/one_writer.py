"""The chief writes, all wait, and its errors are raised on all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import keras
import numpy as np

from tfaccel.distribute.broadcast import Workers, broadcast, decode, encode
from tfaccel.errors import TfaccelError

_DONE, _GATHER = 0, 1


class WritingStrategy(Workers, Protocol):
    """The interface that the policy needs from a strategy of several workers.

    Attributes:
        holds_whole_variables: whether each worker holds all of every variable.
    """

    holds_whole_variables: bool

    def gathered_for_file(self, model: keras.Model) -> AbstractContextManager[None]:
        """While the chief writes, it reads whole variables of `model` without the other workers.

        Every worker must call where they do not hold whole variables.
        """


class ChiefWriteContext:
    """The chief writes while the others are in `on_chief`, ready to take part.

    Args:
        strategy: of several workers.
        model: whose variables can be gathered; None where they have been.
    """

    def __init__(self, strategy: WritingStrategy, model: keras.Model | None) -> None:
        self._strategy = strategy
        self._model = model

    @contextmanager
    def gathered(self, model: keras.Model) -> Iterator[None]:
        """`gathered_for_file`, called on the chief alone.

        Raises:
            TfaccelError: for another model than the others can take part for.
        """
        if self._strategy.holds_whole_variables or self._model is None:
            yield
            return
        if model is not self._model:
            raise TfaccelError(
                f"tfaccel: a callback of Keras's saves model {model.name!r}; expected "
                f"{self._model.name!r}, which fit trains; save the other one in a callback of your "
                "own, on every worker."
            )
        _send(self._strategy, _GATHER)
        with self._strategy.gathered_for_file(model):
            yield


_write_context: ContextVar[ChiefWriteContext | None] = ContextVar(
    "tfaccel_chief_write_context", default=None
)


def current_write_context() -> ChiefWriteContext | None:
    """The turn in which this worker, the chief, is writing."""
    return _write_context.get()


def on_chief(
    strategy: WritingStrategy,
    what: str,
    work: Callable[[], None],
    model: keras.Model | None = None,
) -> None:
    """Runs `work` on the chief, while the others wait; every worker must call.

    Args:
        strategy: of several workers.
        what: the chief's action, for an error message: "write m.keras".
        work: may save `model`, also where the workers hold slices of that.
        model: the same on every worker; None where its variables have been gathered.

    Raises:
        Exception: on the chief, what `work` raised.
        TfaccelError: on the others in that case.
    """
    if current_write_context() is not None:
        work()  # within another turn, which reports at its end
    elif not strategy.cluster.is_chief:
        _raise_on_others(what, _assist_chief(strategy, model))
    else:
        token = _write_context.set(ChiefWriteContext(strategy, model))
        try:
            error = error_of(work)
        finally:
            _write_context.reset(token)
        broadcast_error(strategy, error)
        if error is not None:
            raise error


def on_all(strategy: WritingStrategy, what: str, work: Callable[[], None]) -> None:
    """Runs `work` on every worker, which must all call.

    Args:
        strategy: of several workers.
        what: as in `on_chief`.
        work: must not make one worker wait for another.

    Raises:
        Exception: on a worker, what its `work` raised.
        TfaccelError: on the others, when the chief failed.
    """
    error = error_of(work)
    failure = broadcast_error(strategy, error)
    if error is not None:
        raise error
    _raise_on_others(what, failure)


def _raise_on_others(what: str, failure: str) -> None:
    if failure:
        raise TfaccelError(
            f"tfaccel: worker 0 could not {what}, which it does on behalf of all workers "
            f"({failure}); see its error."
        )


def broadcast_error(strategy: Any, error: Exception | None) -> str:
    """Shares the chief's error with every worker; every worker must call.

    Args:
        strategy: of several workers, or any other.
        error: on the chief, its error.

    Returns:
        The type and text of the error; empty if there was none.
    """
    text = error_text(error) if error is not None else ""
    if getattr(strategy, "cluster", None) is None:
        return text
    return _send(strategy, _DONE, text)[1]


def error_of(work: Callable[[], None]) -> Exception | None:
    """The error of `work`, if any."""
    try:
        work()
    except Exception as error:
        return error
    return None


def error_text(error: Exception) -> str:
    """One line."""
    return " ".join(f"{type(error).__name__}: {getattr(error, 'message', error)}".split())


def _assist_chief(strategy: WritingStrategy, model: keras.Model | None) -> str:
    while True:
        code, text = _send(strategy, _DONE)  # what is received is the chief's
        if code == _DONE:
            return text
        if model is None:
            raise AssertionError("the chief gathers variables that have been gathered")
        with strategy.gathered_for_file(model):
            pass


def _send(strategy: Workers, code: int, text: str = "") -> tuple[int, str]:
    received, numbers = broadcast(strategy, [np.int32(code), encode(text)])
    return int(received), decode(numbers)
