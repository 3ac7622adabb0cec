"""The strategies that train the rows, each in a separate process (or in two)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The order is the order in which they run: what tells most comes first.
CORE = (
    *("arrays", "digits", "language_model", "last_batch_of_one", "batch_norm_synchronized"),
    *("lstm", "attention", "embedding_sparse_gradients", "global_clipnorm"),
    *("gradient_accumulation", "weight_decay", "mixed_bfloat16", "mixed_float16"),
    *("mixed_float16_overflow", "overflow_on_one_replica", "custom_train_step", "tf_data"),
    *("sample_weight", "metric_auc", "steps_per_execution", "language_model_bfloat16"),
    *("digits_float16", "fewer_rows_than_replicas", "cnn_last_batch_of_one"),
    *("lstm_last_batch_of_one", "save_and_load"),
)
FEW = (
    *("arrays", "digits", "language_model", "last_batch_of_one", "lstm", "global_clipnorm"),
    *("gradient_accumulation", "mixed_bfloat16", "mixed_float16_overflow", "custom_train_step"),
)
COMPILED = ("arrays", "digits", "attention", "weight_decay", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Column:
    """One strategy.

    Attributes:
        strategy: its name; `plain` is Keras without tfaccel, which the others are compared with.
        devices: of each worker. More than one are parts of the first GPU, unless `real`.
        real: whether they are GPUs of their own.
        workers: processes; they share the first GPU.
        options: of the strategy.
        compiled: whether models are compiled with `jit_compile=True`.
        rows: what it trains.
        gpu_only: why logical CPUs cannot stand in, or nothing.
    """

    strategy: str
    devices: int = 1
    real: bool = False
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    rows: tuple[str, ...] = CORE
    gpu_only: str = ""

    @property
    def replicas(self) -> int:
        return 1 if self.strategy == "model_parallel" else self.workers * self.devices


NCCL = "NCCL reduces between GPUs"
COLUMNS = {
    "plain": Column("plain", rows=(*CORE, "dropout")),
    "one_device": Column("one_device"),
    "mirrored": Column("mirrored", 2, rows=(*CORE, "dropout")),
    "mesh_batch": Column("model_parallel", 2, options={"mesh": "batch=2"}),
    "mesh_model": Column("model_parallel", 2, options={"mesh": "model=2"}, rows=FEW),
    "workers": Column("multi_worker_mirrored", workers=2, options={"communication": "ring"}),
    "workers_mpi": Column(
        "multi_worker_mirrored", workers=2, options={"communication": "mpi"}, rows=FEW
    ),
    "mirrored_ring": Column("mirrored", 2, options={"communication": "ring"}, rows=FEW[:4]),
    "jit": Column("one_device", compiled=True, rows=COMPILED),
    "xla": Column(
        "one_device", options={"xla": True}, rows=COMPILED, gpu_only="xla=True is for GPUs"
    ),
    "mirrored_xla": Column(
        "mirrored", 2, options={"xla": True}, rows=COMPILED, gpu_only="xla=True is for GPUs"
    ),
    "real_mirrored": Column("mirrored", 2, True, gpu_only=NCCL),
    "real_mirrored_ring": Column(
        "mirrored", 2, True, options={"communication": "ring"}, rows=FEW, gpu_only=NCCL
    ),
    "real_mirrored_jit": Column("mirrored", 2, True, 1, {}, True, COMPILED, gpu_only=NCCL),
    "real_mesh_batch": Column(
        "model_parallel", 2, True, options={"mesh": "batch=2"}, rows=FEW, gpu_only=NCCL
    ),
    "real_mesh_model": Column(
        "model_parallel", 2, True, options={"mesh": "model=2"}, rows=FEW, gpu_only=NCCL
    ),
}
PAIRS = [(name, row) for name, c in COLUMNS.items() if name != "plain" for row in c.rows]
