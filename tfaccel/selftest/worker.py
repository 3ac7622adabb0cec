"""One worker of one case: python -m tfaccel.selftest.worker DIRECTORY look | CASE-AS-JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tfaccel.cluster.cluster import cluster_of
from tfaccel.selftest.cases import Case, Trained


def train(case: Case) -> tuple[int, Trained]:
    """Trains the tiny model under a case's strategy; returns the rank and the result."""
    import numpy as np

    import tfaccel

    options: dict[str, Any] = {"devices": case.devices} if case.devices else {}
    options["mesh"] = case.mesh
    strategy: Any = tfaccel.strategy(case.strategy, device_type=case.device_type, seed=1, **options)
    import keras

    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 8)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="tanh"),
                keras.layers.LayerNormalization(),
                keras.layers.Dense(2),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-2), loss)
    history = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    flat = np.concatenate([np.ravel(weight) for weight in model.get_weights()])
    order = 1.0 + np.arange(flat.size) % 13
    return cluster_of(strategy).rank, Trained(
        loss=float(history.history["loss"][-1]),
        checksum=float(np.sum(np.abs(flat.astype("float64")) * order)),
        digest=hashlib.sha256(flat.tobytes()).hexdigest(),
    )


def look() -> dict[str, int]:
    """How many accelerators there are. Run in a child, so that the parent does not hold them."""
    from tfaccel import hardware

    detected = hardware.detect()
    return {"gpus": hardware.count(detected, "GPU"), "tpus": hardware.count(detected, "TPU")}


def main(folder: str, task: str) -> None:
    """Does the task and leaves its result in DIRECTORY/RANK.json."""
    if task == "look":
        rank, result = 0, look()
    else:
        rank, trained = train(Case(**json.loads(task)))
        result = dataclasses.asdict(trained)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
