"""Every private name of TensorFlow and Keras that tfaccel uses or overrides, and where it is found.

Public interfaces do not cover all that a strategy must change, and a private name may move with any
release. `check` is called when a strategy is created: a missing name is an error, before any step
could run without what depends on it (gradients reduced twice, or not at all). `_private/` documents
why each is used; `tests/distribute/test_private.py` watches what each does.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.errors import StrategyError

TESTED = {"TensorFlow": ((2, 18), (2, 21)), "Keras": ((3, 8), (3, 15))}
"""The first and the last minor release of each that the tests have run with."""

_TF = "tensorflow.python"
_DISTRIBUTE = f"{_TF}.distribute"
_KERAS = "keras.src"
_EXTENDED = f"{_DISTRIBUTE}.distribute_lib.StrategyExtendedV2"
_LAUNCHER = f"{_DISTRIBUTE}.cross_device_utils.CollectiveReplicaLauncher"
_TRAINER = f"{_KERAS}.trainers.trainer.Trainer"
_OPTIMIZER = f"{_KERAS}.optimizers.base_optimizer.BaseOptimizer"

NAMES: dict[str, tuple[str, ...]] = {
    # How a strategy creates variables, runs steps and communicates.
    _EXTENDED: (
        "_container_strategy",
        "_create_variable",
        "_distribute_datasets_from_function",
        "_gather_to_implementation",
        "_in_multi_worker_mode",
        "_local_results",
        "_num_replicas_in_sync",
        "_reduce_to",
    ),
    f"{_DISTRIBUTE}.mirrored_strategy.MirroredExtended": (
        "_call_for_each_replica",
        "_collective_key_base",
        "_collective_keys",
        "_collective_ops",
        "_communication_options",
        "_cross_device_ops",
        "_get_local_replica_id",
        "_get_replica_id_in_sync_group",
        "_get_variable_creator_initial_value",
        "_use_merge_call",
    ),
    f"{_DISTRIBUTE}.collective_all_reduce_strategy.CollectiveAllReduceExtended": (
        "_check_health_thread_should_stop",
        "_cross_device_ops",
        "_host_cross_device_ops",
        "_id_in_cluster",
        "_initialize_local_devices",
        "_is_chief",
        "_num_workers",
        "_worker_device",
    ),
    f"{_DISTRIBUTE}.tpu_strategy.TPUExtended": ("_use_merge_call",),
    f"{_DISTRIBUTE}.tpu_strategy.TPUStrategyV2": ("_enable_packed_variable_in_eager_mode",),
    f"{_DISTRIBUTE}.cross_device_ops.CollectiveAllReduce": ("_launchers",),
    f"{_TF}.eager.context.Context": ("_initialized", "abort_collective_ops"),
    _LAUNCHER: (
        "_all_gather",
        "_device",
        "_get_ordering_token",
        "_group_key",
        "_group_size",
        "_next_instance_key",
        "_options",
    ),
    f"{_DISTRIBUTE}.distribute_lib.ReplicaContextBase": ("_replica_id",),
    f"{_DISTRIBUTE}.values.DistributedVariable": ("_get_on_device_or_primary",),
    f"{_DISTRIBUTE}.values.PerReplica": ("_type_spec",),
    "tensorflow.TypeSpec": (
        "_component_specs",
        "_from_components",
        "_serialize",
        "_to_components",
        "most_specific_common_supertype",
    ),
    # Graphs, functions, variables and datasets.
    f"{_TF}.framework.ops.Graph": (
        "_create_op_internal",
        "_functions",
        "_get_function",
        "_variable_creator_stack",
    ),
    f"{_TF}.framework.op_def_registry": ("get",),
    f"{_TF}.framework.func_graph": ("func_graph_from_py_func",),
    f"{_TF}.framework.random_seed": ("get_seed",),
    f"{_TF}.eager.context": ("context", "global_seed"),
    f"{_TF}.eager.record": ("could_possibly_record", "stop_recording"),
    f"{_TF}.eager.polymorphic_function.polymorphic_function.Function": (
        "_clone",
        "_function_cache",
        "_jit_compile",
    ),
    f"{_TF}.framework.auto_control_deps": (
        "ResourceType",
        "_get_resource_inputs",
        "op_is_stateful",
    ),
    f"{_TF}.framework.auto_control_deps.AutomaticControlDependencies": (
        "experimental_acd_manager",
        "run_independently",
    ),
    f"{_TF}.framework.ops.Operation": (
        "_add_control_input",
        "_control_flow_context",
        "_get_attr_bool",
        "_get_attr_int",
        "_get_attr_type",
    ),
    f"{_TF}.ops.resource_variable_ops": ("UninitializedVariable",),
    f"{_TF}.ops.resource_variable_ops.BaseResourceVariable": ("_handle",),
    f"{_TF}.trackable.base.Trackable": (
        "_copy_trackable_to_cpu",
        "_gather_saveables_for_checkpoint",
        "_restore_from_tensors",
        "_serialize_to_tensors",
    ),
    f"{_TF}.data.ops.iterator_ops": ("OwnedIterator",),
    f"{_TF}.data.ops.dataset_ops": ("UnaryUnchangedStructureDataset", "_OptionsDataset"),
    f"{_TF}.data.ops.dataset_ops.DatasetV2": (
        "_as_serialized_graph",
        "_flat_structure",
        "_functions",
        "_inputs",
    ),
    f"{_TF}.data.ops.from_tensor_slices_op._TensorSliceDataset": ("_tensors",),
    f"{_TF}.data.ops.from_tensors_op._TensorDataset": ("_tensors",),
    f"{_TF}.data.ops.map_op._MapDataset": ("_input_dataset", "_map_func"),
    f"{_TF}.data.ops.map_op._ParallelMapDataset": ("_deterministic", "_map_func"),
    f"{_TF}.data.ops.flat_map_op._FlatMapDataset": ("_map_func",),
    f"{_TF}.data.ops.interleave_op._InterleaveDataset": ("_map_func",),
    f"{_TF}.data.ops.interleave_op._ParallelInterleaveDataset": ("_map_func",),
    f"{_TF}.data.ops.filter_op._FilterDataset": ("_predicate",),
    f"{_TF}.data.ops.structured_function.StructuredFunctionWrapper": (
        "_func",
        "function",
        "output_structure",
    ),
    f"{_TF}.data.ops.batch_op._BatchDataset": ("_batch_size", "_drop_remainder"),
    f"{_TF}.data.ops.batch_op._ParallelBatchDataset": (
        "_batch_size",
        "_deterministic",
        "_drop_remainder",
    ),
    f"{_TF}.data.ops.padded_batch_op._PaddedBatchDataset": (
        "_batch_size",
        "_drop_remainder",
        "_padding_values",
    ),
    f"{_TF}.data.ops.rebatch_op._RebatchDataset": ("_batch_sizes", "_drop_remainder"),
    f"{_TF}.data.ops.shard_op._ShardDataset": ("_index", "_num_shards"),
    f"{_TF}.data.experimental.ops.cardinality._AssertCardinalityDataset": (
        "_expected_cardinality",
    ),
    f"{_TF}.data.ops.cache_op.CacheDataset": ("_filename",),
    f"{_TF}.data.ops.prefetch_op._PrefetchDataset": ("_buffer_size",),
    f"{_TF}.data.ops.repeat_op._RepeatDataset": ("_count",),
    f"{_TF}.data.ops.shuffle_op._ShuffleDataset": (
        "_buffer_size",
        "_reshuffle_each_iteration",
        "_seed",
        "_seed2",
    ),
    f"{_TF}.data.ops.skip_op._SkipDataset": ("_count",),
    f"{_TF}.data.ops.take_op._TakeDataset": ("_count",),
    f"{_TF}.data.ops.zip_op._ZipDataset": ("_datasets",),
    f"{_TF}.util._pywrap_util_port": ("IsMklEnabled",),
    f"{_TF}.util.tf_stack": ("extract_stack",),
    # Keras's trainer, and what a model was compiled with.
    _TRAINER: (
        "_aggregate_additional_loss",
        "_compile_loss",
        "_compile_metrics",
        "_initial_epoch",
        "_loss_tracker",
        "_symbolic_build",
    ),
    f"{_KERAS}.backend.tensorflow.trainer.TensorFlowTrainer": (
        "_distribute_strategy",
        "_get_metrics_result_or_logs",
        "_maybe_symbolic_build",
    ),
    f"{_KERAS}.trainers.data_adapters.array_data_adapter": ("ArrayDataAdapter",),
    f"{_KERAS}.trainers.data_adapters.grain_dataset_adapter": ("GrainDatasetAdapter",),
    f"{_KERAS}.trainers.data_adapters.py_dataset_adapter": ("PyDatasetAdapter",),
    f"{_KERAS}.trainers.data_adapters.py_dataset_adapter.PyDatasetAdapter": (
        "_get_iterator",
        "_output_signature",
        "_standardize_batch",
        "enqueuer",
        "py_dataset",
    ),
    f"{_KERAS}.trainers.data_adapters.tf_dataset_adapter": ("TFDatasetAdapter",),
    f"{_KERAS}.trainers.epoch_iterator.EpochIterator": (
        "_enumerate_iterator",
        "catch_stop_iteration",
    ),
    f"{_KERAS}.trainers.compile_utils.CompileLoss": ("_flat_losses", "metrics"),
    f"{_KERAS}.trainers.compile_utils.CompileMetrics": ("_metrics", "metrics"),
    f"{_KERAS}.layers.normalization.batch_normalization.BatchNormalization": ("_moments",),
    f"{_KERAS}.losses.loss.Loss": ("__call__",),
    f"{_KERAS}.losses.losses.LossFunctionWrapper": ("_fn_kwargs", "fn"),
    f"{_KERAS}.metrics.metric.Metric": ("_variables",),
    f"{_KERAS}.metrics.reduction_metrics.MeanMetricWrapper": ("_fn", "_fn_kwargs"),
    f"{_KERAS}.saving.saving_lib": ("save_model",),
    f"{_KERAS}.legacy.saving.legacy_h5_format": ("save_model_to_hdf5",),
    f"{_KERAS}.callbacks.model_checkpoint.ModelCheckpoint": ("_should_save_on_batch",),
    f"{_KERAS}.callbacks.backup_and_restore.BackupAndRestore": ("_should_save_on_batch",),
    # Optimizers.
    _OPTIMIZER: (
        "_accumulated_gradients",
        "_clip_gradients",
        "_get_variable_index",
        "_iterations",
        "_tracker",
        "_trainable_variables",
        "_var_key",
    ),
    f"{_KERAS}.backend.tensorflow.optimizer.TFOptimizer": (
        "_all_reduce_sum_gradients",
        "_distribution_strategy",
    ),
    f"{_KERAS}.optimizers.adam.Adam": ("_momentums", "_velocities"),
    f"{_KERAS}.optimizers.loss_scale_optimizer.LossScaleOptimizer": ("_common_apply", "_tf_apply"),
    # Layers, models and their parts.
    f"{_KERAS}.layers.layer.Layer": ("_flatten_layers", "_non_trainable_variables", "_tracker"),
    f"{_KERAS}.ops.operation.Operation": ("_inbound_nodes", "_outbound_nodes"),
    f"{_KERAS}.models.sequential.Sequential": ("_functional",),
    f"{_KERAS}.models.functional": ("Functional", "operation_fn"),
    f"{_KERAS}.ops.function.Function": ("_nodes_by_depth", "_run_through_graph"),
    f"{_KERAS}.backend.common.variables.Variable": ("_value",),
    f"{_KERAS}.backend": ("core",),
    f"{_KERAS}.backend.common.global_state": ("get_global_attribute", "set_global_attribute"),
    f"{_KERAS}.backend.common.stateless_scope": ("in_stateless_scope",),
    f"{_KERAS}.backend.common.name_scope": ("current_path",),
    f"{_KERAS}.backend.common.keras_tensor": ("KerasTensor",),
    f"{_KERAS}.backend.common.masking": ("get_keras_mask", "set_keras_mask"),
    f"{_KERAS}.backend.tensorflow.numpy": ("divide",),
}
"""Modules and classes by their full names, and what each must have.

A class has a name when it or a base defines it, or when one of their methods mentions it:
attributes set in a constructor exist only on instances.
"""


def check() -> None:
    """Checks the installed TensorFlow and Keras, once per process.

    Logs a warning for a release outside of `TESTED`.

    Raises:
        StrategyError: when a name of `NAMES` is missing.
    """
    if message := _result():
        raise StrategyError(message)


@functools.cache
def _result() -> str:
    installed = {"TensorFlow": tf.__version__, "Keras": keras.__version__}
    for library, version in installed.items():
        first, last = TESTED[library]
        if not first <= _minor(version) <= last:
            logging.warning(
                "tfaccel: %s %s is untested (tested: %d.%d to %d.%d); run `tfaccel test` to check "
                "parity with single-device training.",
                *(library, version, *first, *last),
            )
    missing = list(missing_names(NAMES))
    if not missing:
        return ""
    have = " and ".join(f"{library} {version}" for library, version in installed.items())
    expected = " and ".join(
        f"{library} {'.'.join(map(str, first))} to {'.'.join(map(str, last))}"
        for library, (first, last) in TESTED.items()
    )
    return (
        f"tfaccel: {have} do not have {', '.join(missing)}, which tfaccel replaces or reads; "
        f"expected {expected}; install one of those, or a newer tfaccel."
    )


def missing_names(names: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The full names among `names` (as `NAMES`) that the installed packages do not have."""
    for owner, attributes in names.items():
        try:
            instance = _find(owner)
        except (ImportError, AttributeError):
            yield owner
            continue
        for attribute in attributes:
            if not _has(instance, attribute):
                yield f"{owner}.{attribute}"


def _find(path: str) -> Any:
    """The module or class of that name.

    >>> _find("tfaccel.errors.StrategyError").__name__
    'StrategyError'
    """
    try:
        return importlib.import_module(path)
    except ImportError:
        owner, _, name = path.rpartition(".")
        if not owner:
            raise
        return getattr(_find(owner), name)


def _has(owner: Any, name: str) -> bool:
    if hasattr(owner, name):
        return True
    methods = (method for cls in getattr(owner, "__mro__", ()) for method in vars(cls).values())
    return any(name in _mentioned(method) for method in methods)


def _mentioned(method: Any) -> Iterator[str]:
    """The names of attributes in the code of a method, and of functions inside it."""
    function = getattr(method, "fget", getattr(method, "__func__", method))
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    pending: list[CodeType] = [code] if code is not None else []
    while pending:
        code = pending.pop()
        yield from code.co_names
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _minor(version: str) -> tuple[int, int]:
    """The first two numbers of a version.

    >>> _minor("2.21.0-rc1")
    (2, 21)
    """
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
