"""What comes out right and should be seen all the same: steps that were not shared among devices.

Where the numbers of a step would be others than one device's, replicas run it over all rows of the
batch, and a mesh computes it whole on its host. Both warn, and both would hide that the step could
once be shared: tests that compare numbers say which of their programs may fall back. AutoGraph,
which converts what a user's `tf.function` calls, warns of our functions that it cannot.
"""

from __future__ import annotations

import logging

ALL_ROWS = "over all rows of the batch"
UNDIVIDED = "is not divided over the mesh"
_UNCONVERTED = "AutoGraph could not transform"
_LOGGERS = ("absl", "tensorflow")


class Fallbacks(logging.Handler):
    """Keeps what tfaccel warns of such steps, while it is entered.

    Attributes:
        said: the warnings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def __enter__(self) -> Fallbacks:
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        line = record.getMessage()
        if any(text in line for text in (ALL_ROWS, UNDIVIDED, _UNCONVERTED)):
            self.said.append(line)
