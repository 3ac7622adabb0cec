"""Which variables of a model each of its optimizers trains: in a GAN, a part each.

An optimizer that is not built is built for the same ones before its state is restored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.files.atomic import inside
from tfaccel.distribute.optimizer import optimizers_of

_NAME = "optimizers.json"

TrainedBy = list[list[int] | None]
"""For each optimizer the positions in `own_variables`; None for one that is not built."""


def own_variables(model: keras.Model) -> list[Any]:
    """The variables of a model, without those of its metrics."""
    of_metrics = {id(v) for metric in model.metrics for v in metric.variables}
    return [v for v in model.variables if id(v) not in of_metrics]


def texts(model: keras.Model) -> dict[str, str]:
    """The small file of a checkpoint that `read` reads."""
    place = {id(v): i for i, v in enumerate(own_variables(model))}
    trained_by: TrainedBy = [
        [place[id(v)] for v in _private.trained_by(optimizer) if id(v) in place]
        if optimizer.built
        else None
        for optimizer in optimizers_of(model)
    ]
    return {_NAME: json.dumps(trained_by)}


def read(path: str) -> TrainedBy:
    """What `texts` wrote; nothing in older checkpoints."""
    if not tf.io.gfile.exists(inside(path, _NAME)):
        return []
    with tf.io.gfile.GFile(inside(path, _NAME)) as file:
        stored: TrainedBy = json.load(file)
    return stored


def build(model: keras.Model, optimizers: Sequence[Any], saved: TrainedBy) -> None:
    """Builds the optimizers of which it is known what they train.

    Args:
        model: built.
        optimizers: of it.
        saved: as `read` returned it; without it, the compiled optimizer trains all.
    """
    own = own_variables(model)
    for number, optimizer in enumerate(optimizers):
        places = saved[number] if number < len(saved) else None
        if optimizer.built:
            continue
        if places is not None and all(place < len(own) for place in places):
            trained = [own[place] for place in places]
        elif number >= len(saved) and optimizer is model.optimizer:
            trained = list(model.trainable_variables)
        else:
            continue
        with model.distribute_strategy.scope():
            optimizer.build(trained)
