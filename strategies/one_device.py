"""One device: TensorFlow as it is. The yardstick that every other strategy is compared with."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.errors import StrategyError
from tfaccel.strategies import settings
from tfaccel.strategies.request import Request


def make(request: Request) -> tf.distribute.Strategy:
    """Returns TensorFlow's default strategy, on the device that was asked for.

    Raises:
        StrategyError: when more than one device or worker was asked for.
    """
    request.refuse_cluster("one_device")
    if len(request.devices) > 1:
        raise StrategyError(
            f"tfaccel: strategy 'one_device' got {', '.join(request.devices)}, expected one "
            "device; use strategy 'mirrored' for more."
        )
    settings.show_only(request.devices)
    return tf.distribute.get_strategy()
