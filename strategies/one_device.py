"""One device: TensorFlow as it is. The yardstick that every other strategy is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfaccel.errors import StrategyError
from tfaccel.strategies.request import Request


def make(request: Request) -> tf.distribute.Strategy:
    """Returns TensorFlow's default strategy, on the device that was asked for.

    Raises:
        StrategyError: when more than one device or worker was asked for.
    """
    request.refuse_cluster("one_device")
    if isinstance(request.options.devices, int) and request.options.devices > 1:
        raise StrategyError(
            f"tfaccel: strategy 'one_device' got devices={request.options.devices}, expected 1; "
            "use strategy 'mirrored' for more."
        )
    _show_only(request.devices[:1])
    return tf.distribute.get_strategy()


def _show_only(names: Sequence[str]) -> None:
    """Hides the GPUs that are not ours, so that TensorFlow places everything on ours."""
    gpus = tf.config.list_physical_devices("GPU")
    ours = [gpu for i, gpu in enumerate(gpus) if f"GPU:{i}" in names]
    if gpus == ours:
        return
    try:
        tf.config.set_visible_devices(ours, "GPU")
    except RuntimeError:
        raise StrategyError(
            f"tfaccel: {names[0]} was asked for after TensorFlow had started on other devices; "
            "make the strategy before anything else uses TensorFlow."
        ) from None
