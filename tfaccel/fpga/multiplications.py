"""How many multiplications an hls4ml layer performs for one row."""

from __future__ import annotations

from typing import Any

_WITH_WEIGHTS = ("Dense", "Conv", "LSTM", "GRU", "Bidirectional", "BatchNormalization")


def multiplications(layer: Any) -> int:
    """Multiplications by nonzero weights, for one row.

    Args:
        layer: of hls4ml's model.
    """
    kind = layer.class_name
    if not any(part in kind for part in _WITH_WEIGHTS):
        return 0
    weights = [
        weight.data
        for name, weight in layer.weights.items()
        if any(part in name for part in ("weight", "kernel", "scale"))
    ]
    return sum(int((weight != 0).sum()) for weight in weights) * _times(layer, weights)


def _times(layer: Any, weights: list[Any]) -> int:
    """How often a row uses each weight: at every pixel, step or position."""
    kind = layer.class_name
    if "Conv" in kind:
        return int(layer.get_attr("out_height", 1)) * int(layer.get_attr("out_width", 1))
    if kind == "EinsumDense":
        return int(layer.get_attr("n_free_data", 1))
    if "BatchNormalization" in kind:
        return int(layer.get_attr("n_in", 1)) // max(weights[0].size, 1) if weights else 0
    return int(layer.get_attr("n_timesteps", 1) or 1)
