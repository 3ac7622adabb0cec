"""The rows an export is checked on: the user's, or generated."""

from __future__ import annotations

import re
import zipfile
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
        generated: they are not the user's.
    """

    x: tuple[np.ndarray, ...]
    y: np.ndarray | None = None
    generated: bool = False


def rows_of(data: Any, shapes: Sequence[Shape]) -> Rows:
    """Reads rows from the forms a user may pass.

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
        numbered = sorted((k for k in data if re.fullmatch(r"x\d+", k)), key=lambda k: int(k[1:]))
        x = [data["x"]] if "x" in data else [data[k] for k in numbered]
        if not x:
            raise FpgaError(
                f"arrays {', '.join(data) or 'none'}; expected x (or x0, x1, ...) and perhaps y."
            )
    elif isinstance(data, tuple) and len(data) == 2:
        x, y = [data[0]], data[1]
    else:
        x = [data]
    if len(x) == 1 and isinstance(x[0], (list, tuple)) and len(shapes) > 1:
        x = list(x[0])
    arrays = tuple(_numbers(one) for one in x)
    row_shapes = [one.shape for one in arrays]
    if len(arrays) != len(shapes) or any(
        a.ndim != len(s) or a.shape[1:] != tuple(s[1:]) for a, s in zip(arrays, shapes, strict=True)
    ):
        raise FpgaError(
            f"rows of shape {row_shapes}; expected {list(shapes)} as the model's inputs."
        )
    if len({len(one) for one in arrays}) != 1 or len(arrays[0]) == 0:
        raise FpgaError(f"{[len(one) for one in arrays]} rows; expected as many for each input.")
    _finite(arrays)
    return Rows(arrays, None if y is None else _classes(np.asarray(y), len(arrays[0])))


def _numbers(values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise FpgaError(
            f"rows that are not an array of numbers ({array.dtype}); expected one array for each "
            "input."
        )
    return array


def _finite(arrays: Sequence[np.ndarray]) -> None:
    """Refuses NaN and infinity, which firmware lacks, so that it could not agree with Keras."""
    with np.errstate(over="ignore"):
        bad = sum(int((~np.isfinite(one.astype(np.float32))).sum()) for one in arrays)
    if bad:
        raise FpgaError(
            f"{bad} of {sum(one.size for one in arrays)} numbers in the rows are not finite in "
            "float32; leave those rows out."
        )


def _classes(y: np.ndarray, rows: int) -> np.ndarray | None:
    """Class numbers of the rows; None when `y` holds something else, such as a regression's."""
    if y.ndim == 0 or len(y) != rows:
        raise FpgaError(f"labels of shape {y.shape}; expected one for each of {rows} rows.")
    if y.ndim == 2 and y.shape[1] > 1:
        hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()
        return y.argmax(-1) if hot else None
    y = y[:, 0] if y.ndim == 2 else y
    whole = y.ndim == 1 and y.dtype.kind in "biuf" and (y == np.floor(y)).all()
    return y.astype(np.int64) if whole else None


def generated(layers: Sequence[Layer], shapes: Sequence[Shape]) -> Rows:
    """Normally distributed rows, always the same; indices for an embedding."""
    random = np.random.default_rng(0)
    sizes = [one.config["input_dim"] for one in layers if one.kind == "Embedding"]
    arrays = []
    for shape in shapes:
        full = (GENERATED_ROWS, *[int(size or 1) for size in shape[1:]])
        drawn = random.integers(0, min(sizes), full) if sizes else random.normal(size=full)
        arrays.append(drawn.astype(np.float32))
    return Rows(tuple(arrays), generated=True)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise FpgaError(
            f"{path} cannot be read ({reason}); expected an .npz file with arrays x and y; write "
            "one with numpy.savez(path, x=x, y=y)."
        ) from error
