"""A `PyDataset` that can be asked for rows, and notes which it has computed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

SIZES = (8, 8, 7, 5)


class Pages(keras.utils.PyDataset):
    """Batches of numbered rows, of several sizes.

    Args:
        order: of the rows; those of the first batch come first.
        sizes: of the batches.
        reorders: whether the rows are put in another order at the end of an epoch.
        threads: that read it.

    Attributes:
        computed: the rows that were computed, each as often as it was.
    """

    def __init__(
        self, sizes: Any = SIZES, order: Any = None, reorders: bool = False, threads: int = 1
    ) -> None:
        super().__init__(workers=threads)
        self.sizes = tuple(sizes)
        self.order = np.arange(sum(sizes)) if order is None else order
        self.reorders, self.computed = reorders, list[int]()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        return self.get_rows(index, np.arange(self.sizes[index]))

    def batch_rows(self, index: int) -> int:
        return self.sizes[index]

    def get_rows(self, index: int, rows: Any) -> Any:
        chosen = self.order[sum(self.sizes[:index]) + rows]
        self.computed.extend(map(int, chosen))
        return self.made_of(chosen)

    def made_of(self, chosen: Any) -> Any:
        x = np.stack([chosen, chosen % 3, np.ones(len(chosen))], axis=1).astype("float32")
        return x, (chosen % 2)[:, None]

    def on_epoch_end(self) -> None:
        if self.reorders:
            self.order = np.random.default_rng(int(self.order[0])).permutation(self.order)


def own_rows(pages: Pages, numbers: Any) -> set[int]:
    """The rows that a process trains on, of which `numbers` are the numbers in a batch."""
    firsts = np.cumsum([0, *pages.sizes])
    own = [pages.order[i + numbers(n)] for i, n in zip(firsts, pages.sizes, strict=False)]
    return {int(row) for rows in own for row in rows}


class Named(Pages):
    """Of parts that have names."""

    def made_of(self, chosen: Any) -> Any:
        x, y = super().made_of(chosen)
        return {"number": chosen, "x": x}, y


class Whole(Pages):
    """Cannot be asked for rows."""

    batch_rows = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        return super().get_rows(index, np.arange(self.sizes[index]))
