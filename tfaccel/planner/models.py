"""Builds the model of a plan under an abstract strategy, and traces its step, once per variant."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfaccel import target
from tfaccel.distribute import _private
from tfaccel.distribute.fused import FusedAdam, fuse, is_fused
from tfaccel.distribute.replacements import replaced
from tfaccel.errors import StrategyError, TfaccelError
from tfaccel.planner import batch_sizes, layer_lists, repeated_blocks, trace
from tfaccel.planner.abstract import AbstractStrategy, Made
from tfaccel.planner.block_places import UnevenError
from tfaccel.planner.steps import Step
from tfaccel.planner.variants import Variant

_Key: TypeAlias = tuple[str, bool, int, bool]
_Built: TypeAlias = tuple[AbstractStrategy, target.Target, "list[int | None]"]
Source: TypeAlias = "str | keras.Model | Callable[[], keras.Model]"


class Models:
    """Creates variants, each once.

    Args:
        source: ``path.py:function``, a ``.keras`` file, a function that builds a model, or a model.
        rows: the minimum and maximum rows of a step to estimate.
        shape: of one row, for a model with unknown input shape.
        dtype: of that input.
        whole: traces equal blocks one by one, for this reason.
        together: whether steps with and without a fused Adam are traced together, where both will
            be requested.
    """

    def __init__(
        self,
        source: Source,
        rows: tuple[int, int],
        shape: Sequence[int] | None = None,
        dtype: str = "float32",
        whole: str = "",
        together: bool = False,
    ) -> None:
        self._source, self._rows = source, rows
        self._shape, self._dtype = shape, dtype
        self._made: dict[_Key, Variant] = {}
        self._built: dict[tuple[str, int, bool, bool], _Built] = {}
        self._dimensions: dict[int, int] = {}
        self._whole, self._together = whole, together
        self._steps: dict[tuple[str, int, bool, bool], dict[bool, Step]] = {}

    @property
    def has_own_precision(self) -> bool:
        """Whether the model's layers already have a precision, as from a file."""
        return isinstance(self._source, keras.Model) or str(self._source).endswith(".keras")

    @property
    def repetition(self) -> tuple[str, ...]:
        """A note on equal blocks of which three were traced."""
        if self._found is None:
            return ()
        if self._whole:
            return (self._whole,)
        kept = repeated_blocks.KEPT
        return (f"{self._found.count} equal blocks were counted from {kept} of them",)

    def variant(
        self, precision: str, fused: bool, accumulate: int = 1, rematerialized: bool = False
    ) -> Variant:
        """A model built under a policy.

        Args:
            precision: of the policy; no effect on a model with its own.
            fused: whether Adam updates with one operation per variable, as on replicas.
            accumulate: the optimizer's gradient accumulation.
            rematerialized: whether its layers are made in a `keras.RematScope`.

        Raises:
            UnevenError: when equal blocks differ that are rematerialized, so that all of them
                would have to be traced.
        """
        least = min(accumulate, 2)  # how often is a number in the graph
        key = (precision, fused, least, rematerialized)
        other = self._made.get((precision, not fused, least, rematerialized))
        if other is not None and not is_fused(other.model.optimizer):
            return other
        if key not in self._made:
            try:
                made = self._make(*key, self._found if not self._whole else None)
                if made.count is not None:
                    made.sized(repeated_blocks.KEPT + 1)
            except UnevenError as reason:
                if rematerialized:
                    raise
                self._whole = f"the model was traced with all its blocks: {reason}"
                made = self._make(*key, None)
            self._made[key] = made
        return self._made[key]

    @functools.cached_property
    def _found(self) -> repeated_blocks.Repeats | layer_lists.Listed | None:
        strategy, models = AbstractStrategy(), []

        def build() -> keras.Model:
            models.append(_build(self._source))
            return models[-1]

        with _private.without_stack_traces(), strategy.scope():
            found = repeated_blocks.find(build)
            if found is None and models and not getattr(models[0], "inputs", None):
                return layer_lists.find(models[0], self._shape, self._dtype)
        return found

    def _make(
        self,
        precision: str,
        fused: bool,
        accumulate: int,
        rematerialized: bool,
        found: repeated_blocks.Repeats | layer_lists.Listed | None,
    ) -> Variant:
        key = (precision, accumulate, rematerialized, found is not None)
        if key not in self._built:
            with keras.RematScope("full") if rematerialized else contextlib.nullcontext():
                self._built[key] = self._build(precision, accumulate, found)
        strategy, described, blocks = self._built[key]

        fused = fused and is_fused(described.model.optimizer)

        def traced() -> Step:
            steps = self._steps.setdefault(key, {})
            if fused not in steps:
                both = self._together and is_fused(described.model.optimizer)
                steps |= self._traced(
                    precision, described, strategy, [False, True] if both else [fused]
                )
            return steps[fused]

        count = found.count if found is not None else None
        return Variant(described.model, strategy.made, described.notes, traced, count, blocks)

    def _traced(
        self,
        precision: str,
        described: target.Target,
        strategy: AbstractStrategy,
        fused: Sequence[bool],
    ) -> dict[bool, Step]:
        """The steps with an Adam that is fused, or not."""
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            updates = [contextlib.nullcontext if one else _plain_updates for one in fused]
            steps = trace.trace(described, strategy, self._rows, self._dimensions, updates)
        except TfaccelError:
            raise
        except Exception as error:
            raise _untraceable(error, self._rows) from error
        finally:
            keras.config.set_dtype_policy(before)
        if steps[0].rows == self._rows:
            self._dimensions = self._dimensions or batch_sizes.dimensions(steps[0])
        return dict(zip(fused, steps, strict=True))

    def _build(
        self,
        precision: str,
        accumulate: int,
        found: repeated_blocks.Repeats | layer_lists.Listed | None,
    ) -> _Built:
        """A model whose Adam is fused, also used for a plain one."""
        strategy = AbstractStrategy()
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            with _private.without_stack_traces(), strategy.scope():
                repeats = found if isinstance(found, repeated_blocks.Repeats) else None
                with repeated_blocks.shortened(repeats) as short:
                    model = _build(self._source)
                if isinstance(found, layer_lists.Listed):
                    short = found.shorten(model)
                if found is not None and (differs := short.differs or short.unlike()):
                    raise UnevenError(differs)
                described = target.describe(model, self._shape, self._dtype, accumulate)
                if model.optimizer is not None:
                    fuse(model.optimizer)
        except Exception as error:
            if found is None and isinstance(error, tf.errors.OpError):
                raise StrategyError(
                    "tfaccel: the model cannot be planned: while it is built it computes with the "
                    f"values of its variables ({type(error).__name__}), expected one that is built "
                    "from their shapes, since the variables of a plan have no values; resize "
                    "weights after the model is built, or give it the size that they have."
                ) from error
            if found is None or isinstance(error, UnevenError):
                raise
            raise UnevenError(f"it cannot be built without them ({error})") from error
        finally:
            keras.config.set_dtype_policy(before)
        cut = {id(v) for layer in short.cut for v in _variables(layer)}
        strategy.made = [one for one in strategy.made if id(one.variable) not in cut]
        blocks = _blocks(short, strategy.made) if found is not None else []
        return strategy, described, blocks


def _untraceable(error: Exception, rows: tuple[int, int]) -> StrategyError:
    plain = re.sub(r"\x1b\[\d*m", "", str(error))
    reason = " ".join(plain.split("Arguments received by")[0].split())[:500].rstrip(".")
    return StrategyError(
        f"tfaccel: the model cannot be planned: its training step for {rows[1]} or {rows[0]} rows "
        f"fails: {type(error).__name__}: {reason}; expected one that can be traced for any number "
        "of rows; call model.train_on_batch on as many, which shows the line that fails."
    )


def _plain_updates() -> AbstractContextManager[None]:
    """Inside, a fused Adam updates as in Keras."""
    return replaced(FusedAdam, "update_step", keras.optimizers.Adam.update_step)


def _variables(operation: Any) -> Iterator[Any]:
    for variable in getattr(operation, "variables", ()):
        yield _private.tf_variable(variable)


def _blocks(short: repeated_blocks.Shortened, made: Sequence[Made]) -> list[int | None]:
    """The block of each variable, and of each slot that goes with it."""
    of: dict[int, int | None] = {}
    for block, layers in enumerate(short.blocks):
        for layer in {id(one): one for one in layers}.values():
            for variable in _variables(layer):
                known = of.get(id(variable), block)
                of[id(variable)] = block if known == block else None  # shared by blocks
    found: list[int | None] = []
    for one in made:
        key = id(one.like) if one.like is not None else id(one.variable)
        found.append(of.get(key))
    return found


def _build(source: Source) -> keras.Model:
    if isinstance(source, keras.Model):
        return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(source))
    if callable(source):
        model = source()
        if not isinstance(model, keras.Model):
            raise StrategyError(
                f"tfaccel: the builder returned a {type(model).__name__}, expected a keras.Model."
            )
        return model
    if source.endswith(".keras") and Path(source).is_file():
        with zipfile.ZipFile(source) as archive:  # its weights are not read
            return keras.saving.deserialize_keras_object(json.loads(archive.read("config.json")))
    return target.build(source)
