"""Runs a step on a mesh and on one device, and restores all state that both have changed.

The step that is compared is the one that will be taken, with its first batch: DTensor recompiles a
step for each number of rows, and that takes most of the time of a first step. One device takes the
same step on the host, on copies of the variables (`host_parity.py`).
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
        model: compiled, unless the step predicts.
        kind: of the step: ``"train"``, ``"test"`` or ``"predict"``.
        function: takes the step, from a list of batches.
        batch: the first one.
        limited: whether to skip steps too large for one device.

    Raises:
        ParityRunError: when it is too large.
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
        """The results of the step on the mesh; every process must call.

        Raises:
            tf.errors.OpError: the step failed.
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
        """Takes the step on one device, in this process, from the mesh's initial state."""
        # All processes have read them before: here there may be only one.
        values_read = replaced(self._strategy, "gathered_values", self._values)
        with self._host_variables_restored(), values_read:
            yield self._alone

    def layers_on_mesh(self) -> dict[str, np.ndarray]:
        """The output of each layer on the mesh; every process must call."""

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
        """Restores the variables of the mesh to their current values."""
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
    """A mesh or host tensor, or a number, as an array; floating-point ones as float64."""
    on_mesh = tf.is_tensor(value) and dtensor.is_dtensor(value)
    return as_array(host_transfer.gather(value) if on_mesh else value)
