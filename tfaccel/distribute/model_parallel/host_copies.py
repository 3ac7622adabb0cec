"""Copies of variables for a function that runs on the host instead of the mesh.

A graph cannot read both a host tensor and a variable of the mesh. Such a function is traced, and
called, with a whole copy of each variable in its place; its assignments are copied to the mesh
afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.graphs import outside_graphs
from tfaccel.distribute.model_parallel import phase, user_functions
from tfaccel.distribute.replacements import replaced


class HostCopies:
    """The copies that one function uses, in all its calls.

    A variable that the function uses and that is not among `variables` is copied when it is first
    requested.

    Args:
        variables: gives the mesh variables that the function is known to use.
        broadcast: with several processes, gives all of them the chief's values; None leaves each
            process its own.
    """

    def __init__(
        self,
        variables: Callable[[], list[Any]] = list,
        broadcast: Callable[[list[Any]], list[Any]] | None = None,
    ) -> None:
        self._variables = variables
        self._broadcast = broadcast
        self._copies: dict[int, tuple[Any, tf.Variable]] = {}
        self._assigned: set[int] = set()
        self.puts_back = True

    @contextmanager
    def used(self, put_back: bool = True) -> Iterator[None]:
        """Reads and assignments inside go to the copies; every process must call.

        Args:
            put_back: whether assignments to the copies are written to the variables, and those
                that are created inside are the mesh's.
        """
        self.puts_back = put_back
        for variable, copy in self._copies.values():
            copy.assign(variable.numpy())
        for variable in self._variables():
            self.of(variable)
        with replaced(_thread_state, "copies", self), phase.entered(phase.COPY):
            yield
        if not put_back:
            return
        assigned = [pair for key, pair in self._copies.items() if key in self._assigned]
        values = [copy.numpy() for _, copy in assigned]
        if self._broadcast is not None and values:
            values = self._broadcast(values)
        for (variable, _), value in zip(assigned, values, strict=True):
            variable.assign(value)

    def of(self, variable: Any, assigned: bool = False) -> tf.Variable:
        """The copy of `variable`, to be copied back to the mesh if it is `assigned`."""
        if assigned:
            self._assigned.add(id(variable))
        if id(variable) not in self._copies:
            # The variable is kept alive with its copy, so that its id is not reused.
            self._copies[id(variable)] = variable, _copied(variable)
        return self._copies[id(variable)][1]


def _copied(variable: Any) -> tf.Variable:
    def copied() -> tf.Variable:
        with tf.init_scope(), tf.device("/CPU:0"):
            value = variable.numpy()
            with phase.entered(phase.COPY):
                return tf.Variable(value, trainable=variable.trainable)

    return made_on_mesh(copied)


def made_on_mesh(make: Callable[[], Any]) -> Any:
    """What `make` returns, called outside of the function that uses copies."""
    made: list[Any] = []
    with replaced(_thread_state, "copies", None), phase.entered(phase.HOST):
        outside_graphs(lambda: made.append(make()))
    return made[0]


class _ThreadState(threading.local):
    copies: HostCopies | None = None


_thread_state = _ThreadState()


class DatasetCopies:
    """Copies for the functions of a `tf.data.Dataset`, which run on host threads.

    A layer that was created in the scope may be called in `dataset.map`. What such a function
    assigns (the state of random numbers) stays with the copy, from which the variable is then read.
    """

    def of(self, variable: Any, assigned: bool = False) -> tf.Variable:
        """The copy of `variable`, made when it is first requested."""
        if variable.in_datasets is None:
            variable.in_datasets = _copied(variable)
        variable.drawn = variable.drawn or assigned
        return variable.in_datasets


_dataset_copies = DatasetCopies()


def in_use() -> bool:
    """Whether this thread runs or traces a function that uses its own copies."""
    return _thread_state.copies is not None


def creates_on_mesh() -> bool:
    """Whether this thread runs or traces a function whose new variables are the mesh's."""
    return _thread_state.copies is not None and _thread_state.copies.puts_back


def current() -> HostCopies | DatasetCopies | None:
    """The copies used by the function that this thread runs."""
    if _thread_state.copies is None and _traces_for_a_dataset():
        return _dataset_copies
    return _thread_state.copies


def _traces_for_a_dataset() -> bool:
    return phase.current() == phase.HOST and user_functions.in_graph_of_dataset()


def mesh_variables(variables: Any) -> list[Any]:
    """The variables of a mesh behind Keras's."""
    return [each for v in variables if hasattr(each := _private.tf_variable(v), "plan")]
