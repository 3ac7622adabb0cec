"""Extends the step of a model with three equal blocks to any number of blocks.

In the list of operations each part of a step, forward, backward and the optimizer's, goes over the
blocks in their order or in the reverse (`reroll.py`). What the middle one does is copied
(`block_copies.py`). A step that is not of this form is an `UnevenError`, and must be traced with
all its blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from tfaccel.planner.block_copies import BlockCopies, Copy, Extended
from tfaccel.planner.block_indices import BlockIndices
from tfaccel.planner.block_places import BLOCKS, Place, UnevenError
from tfaccel.planner.reroll import reroll
from tfaccel.planner.steps import Step


class Extension:
    """Extends a step.

    Args:
        step: of a model with three blocks.
        blocks: the block of each variable, 0 to 2; None for those in none.
        likes: the key to compare variables by, such as their shapes.

    Raises:
        UnevenError: when the step is not the same for each block.
    """

    def __init__(self, step: Step, blocks: Sequence[int | None], likes: Sequence[Hashable]) -> None:
        self._blocks = blocks
        self._rolled = reroll(step, blocks, likes)

    def variables(self, count: int) -> list[Copy]:
        """For each variable of a model with `count` blocks the one that it is like, and its block.

        They are in that model's creation order.
        """
        places, indices = self._rolled.variables, BlockIndices(count)
        sizes = Counter(place.run for place in places.values())
        made: list[Copy] = []
        i = 0
        while i < len(self._blocks):
            place = places.get(i)
            if place is None:
                made.append((i, None))
                i += 1
                continue
            size = sizes[place.run] // BLOCKS
            for index in range(count):
                for p in range(size):
                    made.append((places.at(Place(place.run, indices.like(index), (p,))), index))
            i += BLOCKS * size
        return made

    def to(self, count: int, ends: int = 1) -> Extended:
        """The step of a model with `count` blocks, three or more.

        Args:
            count: of blocks.
            ends: how many copies at either end have a role of their own.

        Raises:
            UnevenError: when the three blocks do not determine the inputs of the others.
        """
        try:
            return BlockCopies(self._rolled, self.variables(count), count, ends).extended()
        except KeyError as error:
            raise UnevenError("something of a block has no counterpart in the others") from error
