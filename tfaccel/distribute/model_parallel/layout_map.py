"""Rules from the paths of variables to the axes of a mesh, as in `keras.distribution`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from tfaccel.errors import LayoutError

Axes = tuple[str | None, ...]


class LayoutMap(MutableMapping[str, Axes]):
    """A dict of layouts whose keys are regular expressions of variable paths.

    The semantics are those of `keras.distribution.LayoutMap`: a path is looked up literally, then
    as a regular expression that must match all of it (`re.fullmatch`), and two expressions that
    match one path are an error. A path that nothing matches is replicated.

    Args:
        rules: pairs to begin with.
        fully_sharded: also shard every parameter and its optimizer slots over the batch axis, and
            gather each one only while the forward pass uses it (ZeRO-3,
            https://arxiv.org/abs/1910.02054).

    >>> layouts = LayoutMap({".*dense.*/kernel": (None, "model"), ".*dense.*/bias": ("model",)})
    >>> layouts["mlp/dense_1/kernel"]
    (None, 'model')
    >>> layouts.get("mlp/norm/gamma") is None
    True
    """

    def __init__(
        self, rules: Mapping[str, Any] | None = None, *, fully_sharded: bool = False
    ) -> None:
        self.fully_sharded = fully_sharded
        self._rules: dict[str, Axes] = {}
        for pattern, axes in (rules or {}).items():
            self[pattern] = axes

    @classmethod
    def of(cls, rules: Mapping[str, Any]) -> LayoutMap:
        """Converts a plain dict or a `keras.distribution.LayoutMap`."""
        return rules if isinstance(rules, cls) else cls(rules)

    def rule_of(self, path: str, of_shape: str = "", on_mesh: str = "") -> str | None:
        """The rule that matches `path`, or None.

        Args:
            path: of a variable.
            of_shape: text for errors about the variable.
            on_mesh: text for errors about the mesh.

        Raises:
            LayoutError: when two rules match.
        """
        if path in self._rules:
            return path
        matching = [pattern for pattern in self._rules if re.fullmatch(pattern, path)]
        if len(matching) > 1:
            raise LayoutError(
                f"tfaccel: variable {path!r}{of_shape} matches {len(matching)} layout rules, "
                f"{' and '.join(map(repr, matching))}{on_mesh}; expected at most one; make them "
                "exclusive."
            )
        return matching[0] if matching else None

    def __getitem__(self, path: str) -> Axes | None:  # type: ignore[override]
        """The axes of each dimension of the variable at `path`; None where no rule matches."""
        rule = self.rule_of(path)
        return None if rule is None else self._rules[rule]

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.rule_of(path) is not None

    def get(self, path: str, default: Any = None) -> Any:
        """As `layouts[path]`, with `default` where no rule matches."""
        axes = self[path]
        return default if axes is None else axes

    def pop(self, pattern: str, *default: Any) -> Any:
        """Removes a rule and returns its axes, or `default` where there is no such rule."""
        return self._rules.pop(pattern, *default)

    def __setitem__(self, pattern: str, axes: Any) -> None:
        """Adds a rule; `axes` is a tuple of axis names and None, or a Keras TensorLayout."""
        axes = getattr(axes, "axes", axes)
        if axes is not None and (
            not isinstance(axes, tuple) or any(not isinstance(a, (str, type(None))) for a in axes)
        ):
            several = _several(axes) if isinstance(axes, tuple) else ""
            raise LayoutError(
                f"tfaccel: the layout of rule {pattern!r} is {axes!r}; expected a tuple with an "
                f"axis name or None for each dimension, such as (None, 'model'){several}."
            )
        try:
            re.compile(pattern)
        except re.error as reason:
            raise LayoutError(
                f"tfaccel: layout rule {pattern!r} is not a regular expression ({reason}); "
                "expected one that matches whole variable paths, such as '.*dense.*/kernel'."
            ) from None
        if pattern in self._rules:
            raise LayoutError(
                f"tfaccel: layout rule {pattern!r} is there already; expected every rule once."
            )
        self._rules[pattern] = tuple(axes or ())

    def __delitem__(self, pattern: str) -> None:
        del self._rules[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def _several(axes: Any) -> str:
    """Advice for a dimension that a rule divides over several axes."""
    if not any(isinstance(axis, (tuple, list)) for axis in axes):
        return ""
    return "; DTensor lays one dimension over one axis: make one axis of their devices"
