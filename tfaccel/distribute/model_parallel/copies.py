"""Copies of variables for a function that runs on the host, and not on the mesh.

A graph cannot read both a host tensor and a variable of the mesh. Such a function is traced, and
called, with a whole copy of each variable in its place; what it assigns is put on the mesh after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel import stage


class UnknownVariableError(KeyError):
    """A variable of the mesh of which there is no copy."""


class Copies:
    """The copies that one function uses, in all its calls.

    Args:
        variables: gives the mesh variables that the function may use.
    """

    def __init__(self, variables: Callable[[], list[Any]]) -> None:
        self._variables = variables
        self._copies: dict[int, tf.Variable] = {}
        self._assigned: set[int] = set()

    @contextmanager
    def used(self, put_back: bool = True) -> Iterator[None]:
        """Reads and assignments inside go to the copies; every process must come here.

        Args:
            put_back: whether the variables get what was assigned to their copies.
        """
        variables = {id(variable): variable for variable in self._variables()}
        values = {key: variable.numpy() for key, variable in variables.items()}
        before, _here.copies = _here.copies, self
        try:
            with stage.entered(stage.COPY):
                for key, value in values.items():
                    if key in self._copies:
                        self._copies[key].assign(value)
                    else:
                        with tf.device("/CPU:0"):
                            trainable = variables[key].trainable
                            self._copies[key] = tf.Variable(value, trainable=trainable)
                yield
        finally:
            _here.copies = before
        for key in (self._assigned & variables.keys()) if put_back else ():
            variables[key].assign(self._copies[key].numpy())

    def of(self, variable: Any, assigned: bool = False) -> tf.Variable:
        """The copy of `variable`, which shall be put on the mesh if it is `assigned`."""
        if assigned:
            self._assigned.add(id(variable))
        if id(variable) not in self._copies:
            raise UnknownVariableError(f"it uses {variable.name!r}, which is no part of the model")
        return self._copies[id(variable)]


class _Here(threading.local):
    copies: Copies | None = None


_here = _Here()


class InDatasets:
    """Copies for the functions of a `tf.data.Dataset`, which run on the host, in threads of it.

    A layer that was made in the scope may be called in `dataset.map`. What such a function assigns
    (the state of random numbers) stays with the copy, from which the variable is then read.
    """

    def of(self, variable: Any, assigned: bool = False) -> tf.Variable:
        """The copy of `variable`, made when it is first asked for."""
        if variable.in_datasets is None:
            with tf.init_scope(), stage.entered(stage.COPY), tf.device("/CPU:0"):
                variable.in_datasets = tf.Variable(variable.numpy(), trainable=False)
        variable.drawn = variable.drawn or assigned
        return variable.in_datasets


_in_datasets = InDatasets()


def current() -> Copies | InDatasets | None:
    """The copies that are used by the function that this thread is in."""
    if _here.copies is None and _traces_for_a_dataset():
        return _in_datasets
    return _here.copies


def _traces_for_a_dataset() -> bool:
    if tf.executing_eagerly() or stage.current() != stage.HOST:
        return False
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(graph, "name", "").startswith("Dataset_"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def mesh_variables(held: Any) -> list[Any]:
    """The variables of a mesh behind Keras's variables `held`."""
    return [each for v in held if hasattr(each := _private.held(v), "plan")]
