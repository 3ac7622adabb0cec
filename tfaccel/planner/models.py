"""Builds the model of a plan under an abstract strategy, and traces its step, once per variant."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfaccel import target
from tfaccel.distribute import _private
from tfaccel.distribute.fused import FusedAdam, fuse, is_fused
from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.distribute.replacements import replaced
from tfaccel.errors import StrategyError, TfaccelError
from tfaccel.planner import batch_sizes, layer_lists, liveness, repeated_blocks, trace
from tfaccel.planner.abstract import AbstractStrategy, Made
from tfaccel.planner.block_copies import Role
from tfaccel.planner.block_places import UnevenError
from tfaccel.planner.gradient_reduction import with_reduced_gradients
from tfaccel.planner.state import Item, State, count_items, items
from tfaccel.planner.step_work import Work
from tfaccel.planner.steps import Step
from tfaccel.planner.unroll import Extension

_Key: TypeAlias = tuple[str, bool, int, bool]
_Built: TypeAlias = tuple[AbstractStrategy, target.Target, "list[int | None]"]
Source: TypeAlias = "str | keras.Model | Callable[[], keras.Model]"


@dataclass(frozen=True)
class Sized:
    """A model with some number of blocks.

    Attributes:
        step: of its training.
        sequence: the step's operations as they run.
        items: its variables.
        roles: of the operations, to compare models with more and fewer blocks.
    """

    step: Step
    sequence: Sequence[int]
    items: Sequence[Item]
    roles: Sequence[Sequence[Role]]

    @functools.cached_property
    def _exchanged(self) -> dict[int, tuple[Step, Sequence[int]]]:
        return {1: (self.step, self.sequence)}

    @functools.cached_property
    def _work(self) -> dict[tuple[int, int], Work]:
        return {}

    @functools.cached_property
    def _by_role(self) -> dict[int, Mapping[Role, int]]:
        return {}

    def by_role(self, operations: int) -> Mapping[Role, int]:
        """The operation of each role, with those of an exchange of gradients: of so many in all."""
        if operations not in self._by_role:
            found = {role: i for i, roles in enumerate(self.roles) for role in roles}
            more = operations - len(self.roles)
            found |= {(-1 - k, "", 0): len(self.roles) + k for k in range(more)}
            self._by_role[operations] = found
        return self._by_role[operations]

    def work(self, rows: int, replicas: int = 1) -> Work:
        """The step for this many rows, where as many replicas sum their gradients."""
        if (rows, replicas) not in self._work:
            if replicas not in self._exchanged:
                step = with_reduced_gradients(self.step, replicas)
                self._exchanged[replicas] = step, liveness.order(step)
            self._work[rows, replicas] = Work.of(*self._exchanged[replicas], rows)
        return self._work[rows, replicas]


@dataclass(frozen=True)
class Variant:
    """A model as some candidates run it.

    Attributes:
        model: without values; it has three of the repeating blocks.
        made: its variables, and those of its optimizer, in the order in which they were made.
        notes: what was assumed.
        traced: traces a step of its training.
        count: the number of repeating blocks; None where the model is as built.
        blocks: the block of each variable, 0 to 2; None for those in none.
    """

    model: Any
    made: Sequence[Made]
    notes: tuple[str, ...]
    traced: Callable[[], Step]
    count: int | None = None
    blocks: Sequence[int | None] = ()

    @functools.cached_property
    def step(self) -> Step:
        """A step of the training of `model`."""
        return self.traced()

    @functools.cached_property
    def extension(self) -> Extension:
        """Extends it to the step of a model with more blocks.

        Raises:
            UnevenError: when that is impossible.
        """
        likes = [(one.shape, one.dtype, one.trainable) for one in self.made]
        return Extension(self.step, self.blocks, likes)

    @functools.cached_property
    def items(self) -> list[Item]:
        """The role of each variable of `model`."""
        return items(self.model, self.made)

    @functools.cached_property
    def _sized(self) -> dict[tuple[int | None, int], Sized]:
        return {}

    @functools.cached_property
    def _listed(self) -> dict[int, list[Item]]:
        return {}

    @functools.cached_property
    def _states(self) -> dict[tuple[int | None, MeshShape | None, str | None], State]:
        return {}

    def state(self, count: int | None, mesh: MeshShape | None, layouts: str | None) -> State:
        """What one device holds of a model with `count` blocks.

        Args:
            count: of blocks; None for `model` itself.
            mesh: of a model that is split.
            layouts: ``"auto"`` or ``"fully_sharded"`` on a mesh.
        """
        key = (count, mesh, layouts)
        if key not in self._states:
            planner = LayoutPlanner(mesh, layouts or "auto") if mesh is not None else None
            self._states[key] = count_items(self.items_of(count), planner)
        return self._states[key]

    def items_of(self, count: int | None) -> list[Item]:
        """The variables of a model with `count` blocks; None for `model` itself."""
        if count is None:
            return self.items
        if count not in self._listed:
            self._listed[count] = list(self._items_of(count))
        return self._listed[count]

    def _items_of(self, count: int) -> Iterator[Item]:
        listed = self.extension.variables(count)
        number = {key: i for i, key in enumerate(listed)}
        for old, index in listed:
            one = self.items[old]
            like = one.like
            if like is not None:
                like = number.get((like, index), number.get((like, None)))
            yield dataclasses.replace(one, like=like, block=index)

    def sized(self, count: int | None, ends: int = 1) -> Sized:
        """The model with `count` blocks; None for `model` itself."""
        if (count, ends) not in self._sized:
            if count is None:
                step = self.step
                roles: Any = [((i, "", 0),) for i in range(len(step.operations))]
            else:
                extended = self.extension.to(count, ends)
                step, roles = extended.step, extended.roles
            self._sized[count, ends] = Sized(
                step, liveness.order(step), self.items_of(count), roles
            )
        return self._sized[count, ends]


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
