"""Where operations, values and variables of a step stand among three equal blocks of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

BLOCKS = 3
"""How many blocks a model has whose step is extended."""


class UnevenError(Exception):
    """Why a step cannot be extended."""


@dataclass(frozen=True)
class Place:
    """Where something stands among the blocks.

    Attributes:
        run: which of the runs over all blocks.
        block: 0 to 2.
        position: in the block, and for a value which of an operation's results.
    """

    run: int
    block: int
    position: tuple[int, ...]


class Places(Mapping[int, Place]):
    """The places of operations, of values or of variables, by their indices.

    Args:
        found: of those that belong to a block.
    """

    def __init__(self, found: Mapping[int, Place]) -> None:
        self._places = dict(found)
        self._indices = {place: i for i, place in found.items()}
        self._counterparts: dict[tuple[int, int], int] = {}

    def __getitem__(self, i: int) -> Place:
        return self._places[i]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def at(self, place: Place) -> int:
        """The index of what stands there.

        Raises:
            KeyError: when nothing does.
        """
        return self._indices[place]

    def counterpart(self, i: int, block: int) -> int:
        """The index of what is in `block` what `i` is in its own.

        Raises:
            KeyError: when there is no such thing.
        """
        key = i, block
        if key not in self._counterparts:
            self._counterparts[key] = self.at(replace(self[i], block=block))
        return self._counterparts[key]
