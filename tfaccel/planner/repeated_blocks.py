"""Repeating blocks of a model: found in its builder's calls, and skipped in a second run.

A builder runs completely, since it may be any Python. Its calls of layers and operations on
symbolic tensors are recorded. In the first run a repeated call creates no variables and computes no
shapes; this shows which calls repeat with the same relative inputs. In the second run all blocks
but the first three return the tensors of the third one, so the model that the builder returns has
three.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from tfaccel.distribute.replacements import Replacements

KEPT = 3
"""Blocks of a shortened model: a first, a last, and one between that stands for all others."""
FEWEST = 5
"""The number of blocks from which three are enough."""

_Ref = tuple[int, int]  # a call and which of its results; -1 and a number for an input


@dataclass(frozen=True)
class Call:
    """A layer or an operation that a builder calls.

    Attributes:
        token: equal for calls of equal layers with arguments of equal shapes.
        refs: where its arguments come from, and the first call of the same layer.
        kind: its class.
    """

    token: int
    refs: tuple[_Ref, ...]
    kind: type


@dataclass(frozen=True)
class Repeats:
    """Equal blocks, one after the other.

    Attributes:
        start: the first call of the first block.
        period: calls of a block.
        count: blocks.
        kinds: the classes of all calls, by which a second run is recognised.
    """

    start: int
    period: int
    count: int
    kinds: tuple[type, ...]

    @property
    def end(self) -> int:
        """The first call after the last block."""
        return self.start + self.period * self.count


@dataclass
class Shortened:
    """A run of a builder with skipped blocks.

    Attributes:
        blocks: the layers of each block that is kept.
        cut: the layers of all others.
        differs: why the run differs from the recorded one; "" if it does not.
    """

    blocks: list[list[Any]] = field(default_factory=lambda: [[] for _ in range(KEPT)])
    cut: list[Any] = field(default_factory=list)
    differs: str = ""

    def unlike(self) -> str:
        """Why a skipped block differs from those kept; "" if none does."""
        frozen = [[_frozen(layer) for layer in block] for block in self.blocks]
        size = len(frozen[0]) or 1
        rest = [_frozen(layer) for layer in self.cut]
        frozen += [rest[k : k + size] for k in range(0, len(rest), size)]
        return "" if all(one == frozen[0] for one in frozen) else "not all equal blocks are trained"


def find(build: Callable[[], keras.Model]) -> Repeats | None:
    """Runs a builder to record its calls, and returns the repeating blocks, or None.

    The builder's result is not usable. An error counts as no repetition: the builder may read
    weights that were not created.
    """
    calls: list[Call] = []
    numbers: dict[int, _Ref] = {}
    alive: list[Any] = []
    tokens: dict[Any, int] = {}
    known: dict[int, Any] = {}
    firsts: dict[int, int] = {}

    def refs(tensors: Sequence[Any]) -> tuple[_Ref, ...]:
        for tensor in tensors:
            if id(tensor) not in numbers:
                numbers[id(tensor)] = (-1, len(alive))
                alive.append(tensor)
        return tuple(numbers[id(tensor)] for tensor in tensors)

    def handle(operation: Any, args: Any, kwargs: Any, proceed: Callable[[], Any]) -> Any:
        tensors = [t for t in keras.tree.flatten((args, kwargs)) if _symbolic(t)]
        said = (signature(operation), _plain(args, kwargs))
        token = tokens.setdefault(said, len(tokens))
        number = len(calls)
        # A layer that was called before shares its weights: it acts like a tensor from there.
        first = firsts.setdefault(id(operation), number)
        made = Call(token, (*refs(tensors), (first, -1)), type(operation))
        alive.append(operation)
        if token in known:
            results = _Known(known[token])(*args, **kwargs)
        else:
            results = known[token] = proceed()
        calls.append(made)
        for k, tensor in enumerate(keras.tree.flatten(results)):
            numbers.setdefault(id(tensor), (number, k))
            alive.append(tensor)
        return results

    try:
        with _watched(handle):
            model = build()
        outputs = refs(keras.tree.flatten(list(getattr(model, "outputs", None) or ())))
    except Exception:
        return None
    return repeats(calls, outputs)


def repeats(calls: Sequence[Call], outputs: Sequence[_Ref]) -> Repeats | None:
    """The blocks that save most calls when only `KEPT` of them are created.

    Args:
        calls: in order.
        outputs: what the model returns.
    """
    tokens = [call.token for call in calls]
    best, spared = None, 0
    for period in range(1, len(calls) // FEWEST + 1):
        start = 0
        while start + period < len(calls):
            end = start
            ways: dict[int, tuple[bool, ...]] = {}
            while end + period < len(calls) and tokens[end] == tokens[end + period]:
                way = _way(calls[end].refs, calls[end + period].refs, period)
                if way is None or ways.setdefault((end - start) % period, way) != way:
                    break
                end += 1
            count = (end - start) // period + 1
            saves = period * (count - KEPT)
            if count >= FEWEST and saves > spared:
                found = Repeats(start, period, count, tuple(call.kind for call in calls))
                if _only_the_last_is_used(found, calls, outputs):
                    best, spared = found, saves
            start = end + 1
    return best


@contextlib.contextmanager
def shortened(found: Repeats | None) -> Iterator[Shortened]:
    """Makes a recorded builder create only `KEPT` of its blocks, inside.

    Args:
        found: from `find`; None leaves the builder unchanged.
    """
    seen = Shortened()
    if found is None:
        yield seen
        return
    results: list[Any] = []

    def handle(operation: Any, args: Any, kwargs: Any, proceed: Callable[[], Any]) -> Any:
        number = len(results)
        if number >= len(found.kinds) or found.kinds[number] is not type(operation):
            seen.differs = f"call {number} of the builder is another in a second run"
        block, position = divmod(number - found.start, found.period)
        inside = found.start <= number < found.end and not seen.differs
        if inside and block >= KEPT:
            result = results[found.start + (KEPT - 1) * found.period + position]
            seen.cut.append(operation)
        else:
            result = proceed()
            if inside:
                seen.blocks[block].append(operation)
        results.append(result)
        return result

    def looked() -> None:
        seen.differs = "its builder looks at the model's layers"

    with _watched(handle), _layers_guarded(looked):
        yield seen
    if not seen.differs and len(results) != len(found.kinds):
        seen.differs = f"a second run made {len(results)} calls, the first {len(found.kinds)}"


class _Known(keras.Operation):  # type: ignore[misc]
    """Stands for a call with known results; creates no variables."""

    def __init__(self, results: Any) -> None:
        super().__init__()
        self.results = results

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors like those known."""
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype) if _symbolic(t) else t, self.results
        )

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Never runs."""
        raise NotImplementedError


_Handle = Callable[[Any, Any, Any, Callable[[], Any]], Any]


@contextlib.contextmanager
def _watched(handle: _Handle) -> Iterator[None]:
    """Inside, `handle` handles outermost calls on symbolic tensors."""
    inside = [False]

    def watching(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if (
                inside[0]
                or isinstance(self, _Known)
                or not any(_symbolic(t) for t in keras.tree.flatten((args, kwargs)))
            ):
                return original(self, *args, **kwargs)

            def proceed() -> Any:
                inside[0] = True
                try:
                    return original(self, *args, **kwargs)
                finally:
                    inside[0] = False

            return handle(self, args, kwargs, proceed)

        return call

    with Replacements() as replacements:
        for owner, name in ((keras.layers.Layer, "__call__"), (keras.Operation, "symbolic_call")):
            replacements.replace(owner, name, watching(getattr(owner, name)))
        yield


def _frozen(operation: Any) -> bool:
    return not getattr(operation, "trainable", True)


@contextlib.contextmanager
def _layers_guarded(looked: Callable[[], None]) -> Iterator[None]:
    """Inside, `looked` is called when code outside Keras reads the layers of a model."""

    def guarded(owner: type) -> property:
        original = vars(owner)["layers"]

        def layers(self: Any) -> Any:
            if not sys._getframe(1).f_globals.get("__name__", "").startswith("keras."):
                looked()
            return original.fget(self)

        return property(layers, original.fset)

    owners = [keras.Model]
    for owner in owners:
        owners += [one for one in owner.__subclasses__() if one not in owners]
    with Replacements() as replacements:
        for owner in owners:
            if "layers" in vars(owner) and owner.__module__.startswith("keras."):
                replacements.replace(owner, "layers", guarded(owner))
        yield


def _symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def signature(operation: Any) -> Any:
    """Equal for operations that compute the same, with their own variables."""
    if not isinstance(operation, keras.Model):
        with contextlib.suppress(Exception):  # raised by a layer without a config
            return type(operation), json.dumps(_nameless(operation.get_config()), default=_as_text)
    return id(operation)


def _as_text(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _nameless(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    return [_nameless(value) for value in config] if isinstance(config, list | tuple) else config


def _plain(args: Any, kwargs: Any) -> str:
    """The arguments of a call, where a tensor is its shape and type."""
    described = keras.tree.map_structure(
        lambda t: ("tensor", t.shape, t.dtype) if _symbolic(t) else t, (args, kwargs)
    )
    return repr(described)


def _way(first: Sequence[_Ref], second: Sequence[_Ref], period: int) -> tuple[bool, ...] | None:
    """For each argument, whether the second takes the same as the first, or one block later.

    None if it takes neither.
    """
    if len(first) != len(second) or not all(
        a == b or (a[0] >= 0 and b == (a[0] + period, a[1]))
        for a, b in zip(first, second, strict=True)
    ):
        return None
    return tuple(a == b for a, b in zip(first, second, strict=True))


def _only_the_last_is_used(found: Repeats, calls: Sequence[Call], outputs: Sequence[_Ref]) -> bool:
    """Whether later calls take nothing from blocks before the last one."""
    taken = [ref for call in calls[found.end :] for ref in call.refs] + list(outputs)
    last = found.end - found.period
    return not any(found.start <= number < last for number, _ in taken)
