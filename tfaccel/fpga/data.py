"""The rows an export is checked on: given, or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfaccel.errors import FpgaError
from tfaccel.fpga.layer import Layer, Shape

GENERATED_ROWS = 256


@dataclass(frozen=True)
class Rows:
    """Rows of input.

    Attributes:
        x: an array for each input of the model.
        y: class numbers, one for each row, if there are any.
        generated: nobody gave them.
    """

    x: tuple[np.ndarray, ...]
    y: np.ndarray | None = None
    generated: bool = False


def rows_of(data: Any, shapes: Sequence[Shape]) -> Rows:
    """Reads rows from what a user may give.

    Args:
        data: an array; a pair of inputs and class numbers; a mapping, or the path of an .npz file,
            with ``x`` (``x0``, ``x1``, ... for several inputs) and perhaps ``y``.
        shapes: of the model's inputs, the batch first.

    Raises:
        FpgaError: it is none of these, or does not fit the model.
    """
    y = None
    if isinstance(data, (str, Path)):
        data = _read(Path(data))
    if isinstance(data, Mapping):
        y = data.get("y")
        x = [data["x"]] if "x" in data else [data[k] for k in sorted(data) if k[:1] == "x"]
        if not x:
            raise FpgaError(f"arrays {', '.join(data) or 'none'}, expected x and perhaps y.")
    elif isinstance(data, tuple) and len(data) == 2:
        x, y = [data[0]], data[1]
    else:
        x = [data]
    if len(x) == 1 and isinstance(x[0], (list, tuple)) and len(shapes) > 1:
        x = list(x[0])
    arrays = tuple(np.asarray(one) for one in x)
    found = [one.shape for one in arrays]
    if len(arrays) != len(shapes) or any(
        a.ndim != len(s) or a.shape[1:] != tuple(s[1:]) for a, s in zip(arrays, shapes, strict=True)
    ):
        raise FpgaError(f"rows of shape {found}, expected {list(shapes)} as the model's inputs.")
    if len({len(one) for one in arrays}) != 1 or len(arrays[0]) == 0:
        raise FpgaError(f"{[len(one) for one in arrays]} rows, expected as many for each input.")
    if y is not None:
        y = np.asarray(y)
        y = y.argmax(-1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(len(y), -1)[:, 0]
        if len(y) != len(arrays[0]):
            raise FpgaError(f"{len(y)} labels for {len(arrays[0])} rows; give one for each row.")
    return Rows(arrays, y)


def generated(layers: Sequence[Layer], shapes: Sequence[Shape]) -> Rows:
    """Normal rows, always the same; indices where an embedding wants them."""
    random = np.random.default_rng(0)
    sizes = [one.config["input_dim"] for one in layers if one.kind == "Embedding"]
    made = []
    for shape in shapes:
        full = (GENERATED_ROWS, *[int(size or 1) for size in shape[1:]])
        drawn = random.integers(0, min(sizes), full) if sizes else random.normal(size=full)
        made.append(drawn.astype(np.float32))
    return Rows(tuple(made), generated=True)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, AttributeError) as error:
        raise FpgaError(
            f"{path} cannot be read ({error}), expected an .npz file with arrays x and y; write "
            "one with numpy.savez(path, x=x, y=y)."
        ) from error
