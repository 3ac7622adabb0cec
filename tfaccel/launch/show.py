"""Whose output a launcher shows: `--show all | chief | 0,3`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tfaccel.errors import LaunchError
from tfaccel.launch.options import Option

CHIEF = "chief"
ALL = "all"

SHOW = Option(
    "--show",
    "whose output is shown: chief (the default, without TensorFlow's start-up messages), all, or "
    "ranks such as 0,3; of the others, warnings and the end of the output of one that fails",
    "WHO",
)


@dataclass(frozen=True)
class Shown:
    """The workers whose output is shown, line by line.

    Attributes:
        ranks: their ranks; None for all, with TensorFlow's start-up messages too.
    """

    ranks: frozenset[int] | None

    def __contains__(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks

    @property
    def labelled(self) -> bool:
        """Whether their lines are prefixed with a rank, as several may be shown.

        >>> shown_by("chief").labelled, shown_by("0,3").labelled
        (False, True)
        """
        return self.ranks is None or len(self.ranks) > 1


def shown_by(text: str, workers: int | None = None) -> Shown:
    """Reads `--show`.

    Args:
        text: `all`, `chief`, or comma-separated ranks.
        workers: the maximum number of workers, if known.

    Raises:
        LaunchError: it is none of these.

    >>> sorted(shown_by("0,3", workers=4).ranks)
    [0, 3]
    """
    if text == ALL:
        return Shown(None)
    if text == CHIEF:
        return Shown(frozenset({0}))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise LaunchError(f"--show is {text!r}; expected all, chief, or ranks such as 0,3")
    ranks = frozenset(map(int, text.split(",")))
    if workers is not None and max(ranks) >= workers:
        raise LaunchError(
            f"--show is {text}, and the ranks of {workers} workers are 0 to {workers - 1}"
        )
    return Shown(ranks)
