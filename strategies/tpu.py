"""TPU: the cores of a TPU, found and started. Not yet run on a TPU: see the README."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.errors import StrategyError
from tfaccel.strategies.request import Request


def make(request: Request) -> tf.distribute.Strategy:
    """Connects to the TPU, initialises it and returns a `TPUStrategy`.

    Raises:
        StrategyError: when there is no TPU, or it cannot be reached.
    """
    name = request.options.tpu or "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError, RuntimeError) as reason:
        raise StrategyError(
            f"tfaccel: TPU {name!r} cannot be used ({_first_line(reason)}); expected a TPU VM with "
            "tensorflow-tpu installed, or tpu=<name> of a TPU in your Google Cloud project."
        ) from reason
    return tf.distribute.TPUStrategy(resolver)


def _first_line(reason: Exception) -> str:
    return (str(reason).splitlines() or [type(reason).__name__])[0]
