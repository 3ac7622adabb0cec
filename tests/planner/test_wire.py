"""Planned bytes on the wire, against the collectives of a step that is really traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.planner.builders import BUILDERS
from tfaccel.distribute.replacements import replaced

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=2)]

ROWS = 32
# Not planned: sums of losses, metrics and moving statistics, and which rows of a table change.
SMALL = {"all-reduce": 300, "all-gather": 1200}


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """The bytes that the first device gives to each collective of the graphs that are traced."""
    found: dict[str, list[int]] = {"all-reduce": [], "all-gather": []}
    kinds = {"CollectiveReduceV2": "all-reduce", "CollectiveGatherV2": "all-gather"}
    create = tf.Graph._create_op_internal  # type: ignore[attr-defined]

    def watched(graph: Any, op_type: str, *args: Any, **kwargs: Any) -> Any:
        made = create(graph, op_type, *args, **kwargs)
        if op_type in kinds and made.device.endswith("CPU:0"):
            given = made.inputs[0]
            size = given.shape.num_elements() if given.shape.is_fully_defined() else 0
            found[kinds[op_type]].append(size * given.dtype.size)
        return made

    with replaced(tf.Graph, "_create_op_internal", watched):
        yield found


RARE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "name", ["transformer", *(pytest.param(name, marks=RARE) for name in ("mlp", "cnn"))]
)
def test_replicas_send_what_is_planned(name: str) -> None:
    """Of two replicas, each sends as many bytes as it gives to a collective."""
    build = BUILDERS[name]
    plan = tfaccel.plan(build, devices="2xT4", batch_size=ROWS, precision="float32")
    (planned,) = (one.wire for one in plan.estimates if one.candidate.name == "mirrored x2")
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu", check="off")
    with strategy.scope():
        model = build()
    x = np.ones(
        (ROWS, *model.input_shape[1:]), keras.backend.standardize_dtype(model.inputs[0].dtype)
    )
    y = np.zeros((ROWS, *model.output_shape[1:-1]), "int32")
    with counted() as sent:
        model.fit(x, y, batch_size=ROWS, verbose=0)
    for kind, sizes in sent.items():
        gradients = planned.get(kind, 0)
        assert not gradients or gradients in sizes, (kind, planned, sizes)
        assert sum(sizes) - gradients <= SMALL[kind], (kind, planned, sizes)
