"""One device: plain TensorFlow. The reference for every other strategy."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.distribute import rematerialization
from tfaccel.distribute.default_strategy import warn_of_backups_under
from tfaccel.distribute.profiled_epochs import profile_fits_of
from tfaccel.errors import StrategyError
from tfaccel.strategies import process_settings
from tfaccel.strategies.accepted_options import ANY, COMMON
from tfaccel.strategies.request import Request

ACCEPTS = {
    **COMMON,
    "gradient_accumulation": ("reduced",),
    "partial_batch": ("exact",),
    "input": ANY,
    "profile": ANY,
    "profile_dir": ANY,
}


def make(request: Request) -> tf.distribute.Strategy:
    """Returns TensorFlow's default strategy, on the requested device.

    Raises:
        StrategyError: when more than one device or worker was requested.
    """
    request.refuse_cluster("one_device")
    if len(request.devices) > 1:
        raise StrategyError(
            f"tfaccel: strategy 'one_device' got {', '.join(request.devices)}; expected one "
            "device; use strategy 'mirrored' for more."
        )
    if request.devices[0].startswith("CPU") and request.devices[0] != "CPU:0":
        raise StrategyError(
            f"tfaccel: strategy 'one_device' got {request.devices[0]}; expected CPU:0: logical "
            "CPUs are all of one processor, which TensorFlow uses whole; leave devices out."
        )
    process_settings.restrict_visible_gpus(request.devices)
    rematerialization.install()
    strategy = tf.distribute.get_strategy()
    warn_of_backups_under(strategy)
    if request.options.profile is not None:
        profile_fits_of(strategy)
    return strategy
