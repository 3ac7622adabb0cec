"""Datasets: the iterator of `tf.data`, and the pipelines that Keras builds from arrays and threads.

`tf.data` does not export the steps of an existing dataset, nor Keras its adapters. Seen with
TensorFlow 2.21 and Keras 3.15, watched by `tests/distribute/test_private.py` and
`tests/distribute/test_threads.py`.
"""

from __future__ import annotations

import functools
import itertools
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# The base of transformations that give elements of their input. Only it makes a dataset, of a
# variant, that has an input in Python.
from tensorflow.python.data.ops.dataset_ops import UnaryUnchangedStructureDataset

# The class of `iter(dataset)`, from which Keras reads batches inside a function. Only its base is
# public, which has no batches.
from tensorflow.python.data.ops.iterator_ops import OwnedIterator as DatasetIterator

__all__ = [
    "DatasetIterator",
    "MapFunction",
    "Stage",
    "array_pipeline",
    "called_operations",
    "class_weighted",
    "has_any_order",
    "has_known_order",
    "input_datasets",
    "is_parallel",
    "restart_threads",
    "stage",
    "user_function",
]

_KINDS = {
    "_MapDataset": "map",
    "_ParallelMapDataset": "map",
    "_BatchDataset": "batch",
    "_ParallelBatchDataset": "batch",
    "_PrefetchDataset": "prefetch",
    "_OptionsDataset": "options",
    "_RepeatDataset": "repeat",
    "_TakeDataset": "take",
    "_SkipDataset": "skip",
    "_ZipDataset": "zip",
    "_ShuffledAlike": "shuffle",
    "CacheDataset": "cache",
    "_TensorDataset": "from_tensors",
    "_TensorSliceDataset": "from_tensor_slices",
}
# Of the tensors in a dataset whose graph is looked at, which copies them.
_MOST_BYTES_COPIED = 64 * 2**20
_OTHER_METHODS = {
    "dense_to_ragged": "ragged_batch",
    "directed_interleave": "sample_from_datasets or choose_from_datasets",
}


@dataclass(frozen=True)
class MapFunction:
    """The function that a `map` calls for each element.

    Attributes:
        call: takes an element and returns one, as traced when the dataset was created, with the
            same captures.
        output: the structure of its result, as in `tf.data.Dataset.element_spec`.
        operations: gives the types of all its operations, and of the functions it calls; a
            ValueError when its constants are larger than a graph may be (2 GB).
        source: the user's function.
        graph: of its operations.
    """

    call: Callable[[Any], Any]
    output: Any
    operations: Callable[[], frozenset[str]]
    source: Any
    graph: Any


@dataclass(frozen=True)
class Stage:
    """The last transformation of a dataset.

    Attributes:
        kind: the method that created it, such as ``"map"`` or ``"shuffle"``.
        inputs: the datasets that it transforms.
        function: of a map.
        number: the rows of a batch; the count of repeat, take, skip and assert_cardinality; the
            shards of shard; the size of prefetch's buffer; 0 for rebatch to several sizes.
        index: of shard.
        drop_remainder: of a batch.
        padding: of a padded_batch, the value for each component of a row.
        filename: of a cache.
        structure: of a zip, its datasets as passed.
        keeps_order: of a shuffle, whether each pass has the same order.
        shuffled: of a shuffle, the dataset that it made.
    """

    kind: str
    inputs: tuple[Any, ...]
    function: MapFunction | None = None
    number: int = 0
    index: int = 0
    drop_remainder: bool = False
    padding: Any = None
    filename: str = ""
    structure: Any = None
    keeps_order: bool = False
    shuffled: Any = None

    def applied_to(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The same repeat, take, skip, shard, shuffle or assert_cardinality of another dataset.

        A shuffle must be one that `has_known_order`.
        """
        match self.kind:
            case "shuffle":
                return _ShuffledAlike(dataset, self.shuffled)
            case "repeat" if not _is_shuffle(self.inputs[0]) and _is_shuffle(dataset):
                dataset = _kept_apart(dataset)
            case "assert_cardinality":
                return dataset.apply(tf.data.experimental.assert_cardinality(self.number))
            case "shard":
                return dataset.shard(self.number, self.index)
        return getattr(dataset, self.kind)(self.number)


def stage(dataset: tf.data.Dataset) -> Stage:
    """Decomposes the last transformation of a dataset."""
    inputs, name = tuple(dataset._inputs()), type(dataset).__name__
    kind = _KINDS.get(name) or _method(name)
    match kind:
        case "map":
            return Stage(kind, inputs, function=_map_function(dataset._map_func))
        case "batch":
            rows, drops = int(dataset._batch_size), bool(dataset._drop_remainder)
            return Stage(kind, inputs, number=rows, drop_remainder=drops)
        case "padded_batch":
            rows, drops = int(dataset._batch_size), bool(dataset._drop_remainder)
            padding = dataset._padding_values
            return Stage(kind, inputs, number=rows, drop_remainder=drops, padding=padding)
        case "unbatch":
            return Stage(kind, _as_given(inputs))
        case "rebatch":
            sizes, drops = dataset._batch_sizes, bool(dataset._drop_remainder)
            rows = 0 if sizes.shape.rank else int(sizes)
            return Stage(kind, _as_given(inputs), number=rows, drop_remainder=drops)
        case "assert_cardinality":
            return Stage(kind, inputs, number=int(dataset._expected_cardinality))
        case "shard":
            return Stage(kind, inputs, number=int(dataset._num_shards), index=int(dataset._index))
        case "prefetch":
            return Stage(kind, inputs, number=int(dataset._buffer_size))
        case "repeat" | "take" | "skip":
            return Stage(kind, inputs, number=int(dataset._count))
        case "cache":
            return Stage(kind, inputs, filename=dataset._filename.numpy().decode())
        case "zip":
            return Stage(kind, inputs, structure=dataset._datasets)
        case "shuffle":
            anew = dataset._reshuffle_each_iteration
            keeps = anew is not None and not anew
            return Stage(kind, inputs, keeps_order=keeps, shuffled=dataset)
        case "variant" if _are_numbers(dataset):
            return Stage("numbers of enumerate", inputs)
    return Stage(kind, inputs)


def _is_shuffle(dataset: tf.data.Dataset) -> bool:
    return stage(dataset).kind == "shuffle"


def _kept_apart(shuffled: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset, of which no optimization makes one with a repeat after it.

    `tf.data` makes one of a shuffle and a repeat next to it, which draws one order fewer in each
    pass than the two with anything between them.
    """
    return shuffled.with_options(tf.data.Options())


class _ShuffledAlike(UnaryUnchangedStructureDataset):  # type: ignore[misc]
    """A dataset in the order that a shuffle of the user's gives another one.

    Both draw the order of each pass from one generator, as two passes over the user's would.

    Args:
        dataset: to shuffle.
        like: the user's.
    """

    def __init__(self, dataset: Any, like: Any) -> None:
        self._input_dataset = dataset
        self._buffer_size, self._seed, self._seed2 = like._buffer_size, like._seed, like._seed2
        self._reshuffle_each_iteration = like._reshuffle_each_iteration
        self._like = like  # whose end is that of the generator
        variant = tf.raw_ops.ShuffleDatasetV3(
            input_dataset=tf.data.experimental.to_variant(dataset),
            buffer_size=self._buffer_size,
            seed=self._seed,
            seed2=self._seed2,
            seed_generator=_generator(like),
            reshuffle_each_iteration=self._reshuffle_each_iteration,
            **dataset._flat_structure,
        )
        super().__init__(dataset, variant)


_generators: weakref.WeakKeyDictionary[Any, tf.Tensor | None] = weakref.WeakKeyDictionary()


def has_known_order(shuffled: tf.data.Dataset) -> bool:
    """Whether another dataset can have the order that a shuffle draws.

    Its generator is in its graph, which is not looked at where it would copy large tensors.
    """
    return _generator(shuffled) is not None


def _generator(shuffled: Any) -> tf.Tensor | None:
    """The generator from which a shuffle draws the order of each pass; None where not known."""
    if isinstance(shuffled, _ShuffledAlike):
        return _generator(shuffled._like)
    if shuffled not in _generators:
        _generators[shuffled] = _read_generator(shuffled)
    return _generators[shuffled]


def _read_generator(shuffled: Any) -> tf.Tensor | None:
    try:
        if _bytes_inside(shuffled) > _MOST_BYTES_COPIED:
            return None
        graph = _serialized(shuffled)
    except (ValueError, tf.errors.OpError):  # larger than a graph may be (2 GB)
        return None
    nodes = {node.name: node for node in graph.node}
    *_, output = graph.node
    made = nodes[output.input[0].partition(":")[0]]
    if made.op != "ShuffleDatasetV3":
        return None
    value = nodes[made.input[4].partition(":")[0]].attr["value"].tensor
    return tf.io.parse_tensor(value.SerializeToString(), tf.resource)


def _are_numbers(dataset: Any) -> bool:
    """Whether a dataset without inputs in Python is the range that `enumerate` zips with rows."""
    if dataset.element_spec != tf.TensorSpec([], tf.int64):
        return False
    datasets = {node.op for node in _serialized(dataset).node if "Dataset" in node.op}
    return datasets <= {"RangeDataset", "RewriteDataset"}


def _as_given(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The dataset that the user unbatched: TensorFlow inserts a map of its own and a new structure.

    Both leave dense tensors as they are.
    """
    for mapped in (below for each in inputs for below in each._inputs()):
        name = getattr(user_function(mapped), "__qualname__", "")
        if name == "normalize_to_dense.<locals>.normalize":
            return tuple(mapped._inputs())
    return inputs


def called_operations(dataset: tf.data.Dataset) -> frozenset[str]:
    """The operations of the user's function that the last transformation of a dataset calls.

    Also of the functions that those call: of a map inside of an interleave, say. Empty without a
    function.

    Raises:
        ValueError: its constants are larger than a graph may be (2 GB).
    """
    wrappers = (getattr(dataset, name, None) for name in ("_map_func", "_predicate"))
    return frozenset().union(*(_operations(each.function) for each in wrappers if each is not None))


def class_weighted(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, Callable[..., Any]] | None:
    """The batches to which Keras adds the weight of each row's class, and what adds it.

    Keras maps the function over the user's dataset, for `fit(class_weight=...)`. It goes row by
    row. None when `dataset` does not have that form.
    """
    while type(dataset).__name__ in ("_PrefetchDataset", "_OptionsDataset"):
        (dataset,) = dataset._inputs()
    function = user_function(dataset)
    name = getattr(function, "__qualname__", "")
    if name != "make_class_weight_map_fn.<locals>.class_weights_map_fn":
        return None
    (batches,) = dataset._inputs()
    return batches, function


def is_parallel(dataset: tf.data.Dataset) -> bool:
    """Whether the last transformation of a dataset runs in several threads."""
    return type(dataset).__name__.strip("_").startswith("Parallel")


def input_datasets(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, ...]:
    """The datasets that the last transformation of a dataset reads."""
    return tuple(dataset._inputs())


def has_any_order(dataset: tf.data.Dataset) -> bool | None:
    """Whether the last transformation of a dataset gives its elements in any order.

    By `deterministic=False` or `sloppy=True`, its own or that of a dataset inside its function. An
    interleave does not keep it in Python: its graph tells, in which its inputs are too.

    Returns:
        None where it is not known: an interleave of large tensors, which its graph would copy.
    """
    if getattr(dataset, "_deterministic", "") == "false":
        return True
    try:
        if type(dataset).__name__ == "_ParallelInterleaveDataset":
            if _bytes_inside(dataset) > _MOST_BYTES_COPIED:
                return None
            return _says_any_order(_serialized(dataset))
        graphs = [each.function.graph.as_graph_def() for each in dataset._functions()]
    except (ValueError, tf.errors.OpError):  # larger than a graph may be (2 GB)
        return None
    return any(_says_any_order(graph) for graph in graphs)


def _serialized(dataset: tf.data.Dataset) -> Any:
    policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    serialized = dataset._as_serialized_graph(external_state_policy=policy)
    return tf.compat.v1.GraphDef.FromString(serialized.numpy())


def _says_any_order(graph: Any) -> bool:
    called = (node for each in graph.library.function for node in each.node_def)
    return any(
        "Dataset" in node.op and node.attr["deterministic"].s == b"false"
        for node in itertools.chain(graph.node, called)
        if "deterministic" in node.attr
    )


def _bytes_inside(dataset: tf.data.Dataset) -> int:
    """The size of the tensors of a dataset, of its inputs, and of what their functions capture."""
    tensors = [*getattr(dataset, "_tensors", ())]
    for each in dataset._functions():
        tensors += each.function.captured_inputs
    # Strings are as long as a file name, at least roughly; handles of resources are not copied.
    size: int = sum(t.dtype.size * (t.shape.num_elements() or 0) for t in tensors)
    return size + sum(_bytes_inside(each) for each in dataset._inputs())


def user_function(dataset: tf.data.Dataset) -> Any:
    """The user's function that the last transformation of a dataset calls, or None.

    That of a map, an interleave or a flat map, or the predicate of a filter.
    """
    for name in ("_map_func", "_predicate"):
        if (wrapper := getattr(dataset, name, None)) is not None:
            return getattr(wrapper, "_func", None)
    return None


def _method(name: str) -> str:
    """The method that creates a dataset of this class.

    >>> _method("_ShuffleDataset"), _method("_ParallelInterleaveDataset")
    ('shuffle', 'interleave')
    """
    plain = name.strip("_").removesuffix("V2").removesuffix("Dataset").removeprefix("Parallel")
    method = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).lower()
    return _OTHER_METHODS.get(method, method)


def _map_function(wrapper: Any) -> MapFunction:
    function, output = wrapper.function, wrapper.output_structure

    def call(element: Any) -> Any:
        returned = function(*tf.nest.flatten(element, expand_composites=True))
        flat = returned if isinstance(returned, (list, tuple)) else [returned]
        return tf.nest.pack_sequence_as(output, flat, expand_composites=True)

    operations = functools.partial(_operations, function)
    return MapFunction(call, output, operations, wrapper._func, function.graph)


def _operations(function: Any) -> frozenset[str]:
    """The types of all operations of a function, and of those that it calls."""
    graph = function.graph.as_graph_def()
    called = (node for each in graph.library.function for node in each.node_def)
    return frozenset(node.op for node in itertools.chain(graph.node, called))


def array_pipeline(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, list[Any]] | None:
    """Decomposes the dataset that Keras builds from in-memory arrays.

    Keras gathers every row of a global batch, before any rows could be selected. To gather only our
    own, the indices must be split before they are used, and `tf.data` has no public way to insert a
    step into an existing dataset.

    Returns:
        The innermost dataset, of `(row indices, arrays)` pairs, and the functions mapped over it
        in order (the first is Keras's gather); None when `dataset` does not have that form.
    """
    functions: list[Any] = []
    node = dataset
    while not type(node).__name__.startswith("_ZipDataset"):
        mapped = getattr(node, "_map_func", None)
        if mapped is not None:
            functions.insert(0, mapped._func)
        elif type(node).__name__ not in ("_PrefetchDataset", "_OptionsDataset"):
            return None
        node = getattr(node, "_input_dataset", None)
        if node is None:
            return None
    if not functions or getattr(functions[0], "__name__", "") != "grab_batch":
        return None
    return node, functions


def restart_threads(threads: Any) -> None:
    """Lets the threads of a `PyDataset`, stopped after inspecting its first batch, restart.

    Keras 3.15 keeps what they have read by then for the next pass, which still begins with the
    first batch: up to ten batches would come twice, and as many of the last ones never.

    Args:
        threads: of `Caller`; since stopped, and perhaps restarted.
    """
    while not threads.ready_queue.empty():
        threads.ready_queue.get_nowait()
