"""From which of any number of blocks a copy takes its inputs, derived from three traced blocks.

The first and the last are copies of the first and the last of the three, and all others of the
middle one: the inputs of that one, from a neighbour or from an end, determine those of its copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tfaccel.planner.block_places import Place, UnevenError


@dataclass(frozen=True)
class BlockIndices:
    """The indices of the blocks of the longer model.

    Attributes:
        count: of blocks, three or more.
    """

    count: int

    @property
    def last(self) -> int:
        """The index of the last one."""
        return self.count - 1

    def like(self, index: int) -> int:
        """The block of the short model, 0 to 2, that the one at `index` is like.

        >>> [BlockIndices(5).like(index) for index in range(5)]
        [0, 1, 1, 1, 2]
        """
        return 0 if index == 0 else 2 if index == self.last else 1

    def copies(self, block: int) -> Sequence[int]:
        """The indices of the copies of a block of the short model."""
        return ([0], range(1, self.last), [self.last])[block]

    def end(self, block: int) -> int:
        """The index of the only copy of a block that is not the middle one."""
        return 0 if block == 0 else self.last

    def taken(
        self, block: int, index: int | None, given: Place | None, slot: Sequence[Place | None]
    ) -> int | None:
        """The index of what is taken from `given`, by an operation of `block` at `index`.

        Args:
            block: of the short step, that takes it.
            index: of that in the new one.
            given: what is taken there; None outside of all runs.
            slot: what each of the three blocks takes at this place.

        Raises:
            UnevenError: when the three do not determine the input of a copy.
        """
        if given is None:
            if block == 1 and slot[2] is not None:
                raise UnevenError("a block takes what no other takes")
            return None
        assert index is not None
        if block == 0:
            return (0, 1, self.last)[given.block]
        if block == 2:
            return (0, self.last - 1, self.last)[given.block]
        following, before = slot[2], slot[0]
        if given.block == 1:
            if following is None or following.block != 2:
                raise UnevenError("all blocks take the same of one of them")
            return index
        if given.block == 0:
            if following is None or following.block == 2:
                raise UnevenError("a block takes of its neighbour what the next does not")
            return index - 1 if following.block == 1 else 0
        if before is None or before.block == 0:
            raise UnevenError("a block takes of its neighbour what the one before does not")
        return index + 1 if before.block == 1 else self.last

    def collected(
        self, sources: Sequence[Place | None], name: str
    ) -> Iterator[tuple[int, int | None]]:
        """What an operation outside of the runs takes: which of its inputs, of which copies.

        Args:
            sources: what it takes in the short step; None outside of all runs.
            name: of the operation.

        Raises:
            UnevenError: when it takes something of the middle block alone.
        """
        k = 0
        known = {one for one in sources if one is not None}
        while k < len(sources):
            one = sources[k]
            if one is None:
                yield k, None
                k += 1
            elif one.block != 1:
                yield k, self.end(one.block)
                k += 1
            else:
                group = [k]
                while group[-1] + 1 < len(sources):
                    following = sources[group[-1] + 1]
                    if following is None or following.block != 1:
                        break
                    group.append(group[-1] + 1)
                for g in group:
                    place = sources[g]
                    assert place is not None
                    if not {replace(place, block=0), replace(place, block=2)} <= known:
                        raise UnevenError(f"{name} takes what the middle block made alone")
                before = sources[k - 1] if k else None
                copies = self.copies(1)
                descends = before is not None and before.block == 2
                for index in reversed(copies) if descends else copies:
                    for g in group:
                        yield g, index
                k = group[-1] + 1
