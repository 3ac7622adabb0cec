"""Runs a step on a mesh and on one device, and restores all that both have changed.

The step that is compared is the one that will be taken, with its first batch: DTensor recompiles a
step for each number of rows, and that takes most of the time of a first step. One device takes the
same step on the host, by copies of the variables (`host_parity.py`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import logs
from tfaccel.distribute.model_parallel import host_transfer
from tfaccel.distribute.model_parallel.host_copies import mesh_variables
from tfaccel.distribute.model_parallel.host_fallback import on_host
from tfaccel.distribute.model_parallel.host_parity import HostParityRun, as_array
from tfaccel.distribute.model_parallel.layer_attribution import layer_outputs
from tfaccel.distribute.model_parallel.mesh_batches import to_dtensors
from tfaccel.distribute.object_graph import reachable_objects
from tfaccel.distribute.replacements import replaced
from tfaccel.distribute.step_result import HostState, StepResult, flat_outputs, variables_of


class MeshParityRun:
    """The first step of a kind of `model`, to be taken on the mesh and on one device.

    Args:
        strategy: of the mesh.
        model: compiled, but for a step that predicts.
        kind: of the step: ``"train"``, ``"test"`` or ``"predict"``.
        function: takes the step; it is given a list of batches.
        batch: the first one.
        limited: whether what is too large for one device is left out.

    Raises:
        ParityRunError: when it is.
    """

    def __init__(
        self,
        strategy: Any,
        model: Any,
        kind: str,
        function: Callable[[Any], Any],
        batch: Any,
        limited: bool,
    ) -> None:
        self._strategy, self._model, self._kind = strategy, model, kind
        self._function, self._batch = function, batch
        reached = reachable_objects(model)
        variables = [*variables_of(model), *reached.variables, *reached.raw]
        self._variables = list({id(v): v for v in variables if mesh_variables([v])}.values())
        self._host_variables = [v for v in reached.raw if not mesh_variables([v])]
        self._mesh_variables = mesh_variables(self._variables)
        self._values: dict[int, np.ndarray] = {}
        variable_pairs = list(zip(self._variables, self._mesh_variables, strict=True))
        self._alone = HostParityRun(strategy, model, kind, variable_pairs, on_host(batch), limited)

    def on_mesh(self) -> StepResult:
        """What the step on the mesh does; every process must come here.

        Raises:
            tf.errors.OpError: what goes wrong in it.
        """
        self._values = {id(v): host_transfer.gather(v.stored()) for v in self._mesh_variables}
        before = [_to_numpy(self._values[id(v)]) for v in self._mesh_variables]
        with self._variables_restored(), self._strategy.random_override.enabled():
            returned = self._strategy.deferred_errors.follow(self._function([self._batch]))
            self._strategy.deferred_errors.check()
            result = self._result(returned)
            after = [_to_numpy(v.stored()) for v in self._mesh_variables]
        changes = zip(self._variables, before, after, strict=True)
        result.add_changes(self._model, changes, slots=True)
        return result

    @contextlib.contextmanager
    def on_one_device(self) -> Iterator[HostParityRun]:
        """Lets one device take the step, in this process, from what the mesh began with."""
        # Read by all processes before: here there may be one alone.
        values_read = replaced(self._strategy, "gathered_values", self._values)
        with self._host_variables_restored(), values_read:
            yield self._alone

    def layers_on_mesh(self) -> dict[str, np.ndarray]:
        """What each layer gives on the mesh; every process must come here."""

        @tf.function(autograph=False)
        def traced(batch: Any) -> Any:
            run = functools.partial(layer_outputs, self._model, self._kind)
            return self._strategy.extended.call_for_each_replica(run, args=(to_dtensors(batch),))

        host_state = HostState(self._model)
        try:
            with self._variables_restored(), self._strategy.random_override.enabled():
                return {
                    name: _to_numpy(value)
                    for name, value in traced(self._strategy.on_mesh(self._batch)).items()
                }
        finally:
            host_state.restore()

    def _result(self, returned: Any) -> StepResult:
        if self._kind == "predict":
            flat = flat_outputs(to_dtensors(returned))
            return StepResult(outputs={name: _to_numpy(rows) for name, rows in flat.items()})
        named = {logs.name_of(at): _to_numpy(log) for at, log in logs.leaves(returned)}
        return StepResult(logs=named)

    @contextlib.contextmanager
    def _variables_restored(self) -> Iterator[None]:
        """Sets the variables of the mesh back to what they are now."""
        created: list[tuple[Any, Any]] = []
        saved = [(v, v.stored()) for v in self._mesh_variables]
        try:
            with (
                self._host_variables_restored(),
                replaced(self._strategy, "created_variables", created),
            ):
                yield
        finally:
            for variable, value in [*saved, *created]:
                variable.store(value)

    @contextlib.contextmanager
    def _host_variables_restored(self) -> Iterator[None]:
        saved = [(v, v.numpy()) for v in self._host_variables]
        try:
            yield
        finally:
            for variable, value in saved:
                variable.assign(value)


def _to_numpy(value: Any) -> np.ndarray:
    """A tensor of the mesh or the host, or a number, as an array; floating ones as float64."""
    on_mesh = tf.is_tensor(value) and dtensor.is_dtensor(value)
    return as_array(host_transfer.gather(value) if on_mesh else value)
