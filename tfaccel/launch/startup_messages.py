"""The start-up messages of TensorFlow, which do not depend on the user's script."""

from __future__ import annotations

import re
from collections.abc import Mapping

VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
"""TensorFlow's own log level of its C++ code; a user's setting is respected."""

_STARTUP_MESSAGE = re.compile(
    r"""
    WARNING:\ All\ log\ messages\ before\ absl::InitializeLog
    # TensorFlow's C++ at level INFO, in its newer and in its older form; not Python's.
    | I\d{4}\ [\d:.]+\ +\d+\ \S+\.(cc|h):\d+\]
    | \d{4}-\d\d-\d\d\ [\d:.]+:\ I\ \S+\.(cc|h):\d+\]
    # The second line of the message of cpu_feature_guard.
    | To\ enable\ the\ following\ instructions:.*\ rebuild\ TensorFlow
    | .*(
        Unable\ to\ register\ cu(DNN|FFT|BLAS)\ (factory|plugin|kernel)
        | computation\ placer\ already\ registered
        | Could\ not\ find\ (cuda\ drivers|TensorRT)
        # There is no driver, or no device is visible: a machine without GPUs.
        | failed\ call\ to\ cuInit:.*(\(303\)|no\ CUDA-capable\ device)
        # Of every strategy of several workers that is made where TensorFlow has started.
        | Collective\ ops\ is\ not\ configured\ at\ program\ startup
    )
    """,
    re.VERBOSE,
)


def is_startup_message(text: str) -> bool:
    """Whether a line is one of TensorFlow's start-up messages.

    >>> is_startup_message("I0000 00:00:1795939443.604761    8450 cpu_feature_guard.cc:227] ...")
    True
    >>> is_startup_message("I1129 08:05:04.064800 139888070650752 train.py:12] reading images")
    False
    """
    return _STARTUP_MESSAGE.match(text) is not None


def is_level_set(environment: Mapping[str, str]) -> bool:
    """Whether this environment sets the log level of TensorFlow's C++ code."""
    return VARIABLE in environment
