"""TPUStrategy for Keras 3: a replica on each core of a TPU.

Not yet run on a TPU; its steps have been traced (`tests/distribute/test_tpu_strategy.py`).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.fit import KerasFit, KerasFitExtended
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.steps_per_execution import StepsPerExecution
from tfaccel.errors import StrategyError


class TPUExtended(KerasFitExtended, _private.TPUExtended):  # type: ignore[misc]
    """How `TPUStrategy` creates variables and runs steps."""

    def _use_merge_call(self) -> bool:
        # A TPU's replicas are one program, traced once: none waits for another.
        return True


class TPUStrategy(KerasFit, tf.distribute.TPUStrategy):  # type: ignore[misc]
    """Data parallelism over the cores of a TPU, with batches of one static shape.

    Args:
        resolver: of a TPU that has been initialised.
        steps_per_execution: of models that were compiled without one; None chooses it (see
            `tfaccel.distribute.steps_per_execution`).
        options: how the replicas train together; None for the defaults.
    """

    partial_batch = "pad"
    integer = tf.int32  # a TPU cannot sum other integers over its cores

    def __init__(
        self,
        resolver: tf.distribute.cluster_resolver.TPUClusterResolver,
        steps_per_execution: int | None = None,
        options: ReplicaOptions | None = None,
    ) -> None:
        self._set_options(options)
        tf.distribute.Strategy.__init__(self, TPUExtended(self, resolver))
        _private.pack_variables(self)
        if all("job:localhost" in device for device in self.extended.worker_devices):
            # The data must be where the steps run.
            self.steps_per_execution = StepsPerExecution(steps_per_execution)

    def _prepare(self, model: Any) -> None:
        for name, expected in (("jit_compile", "'auto'"), ("run_eagerly", "False")):
            if getattr(model, name):
                raise StrategyError(
                    f"tfaccel: {name}=True was requested on a TPU, which compiles every step "
                    f"already; compile the model with {name}={expected}."
                )
        super()._prepare(model)
