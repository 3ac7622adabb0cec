"""What one process trains, and how many operations that is."""

from __future__ import annotations

from dataclasses import dataclass

# Dense bfloat16 on the tensor cores, in TFLOP/s. NVIDIA's data sheets give twice as much, "with
# sparsity": https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (H100
# SXM 1,979; PCIe 1,513), https://www.nvidia.com/en-us/data-center/h200/ (1,979), and
# https://www.nvidia.com/en-us/data-center/a100/ (624). The first name that a card's contains.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}


@dataclass(frozen=True)
class Sizes:
    """Of one model.

    Attributes:
        batch: rows of a step.
        image: pixels on each side, for ResNet-50.
        classes: for ResNet-50.
        layers: the other five are the decoder's.
        width: of its stream; a feed-forward layer has four times as much.
        heads: of attention.
        vocabulary: number of tokens.
        sequence: tokens of a row.
    """

    batch: int
    image: int = 224
    classes: int = 1000
    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    sequence: int = 1024


SIZES = {"resnet50": Sizes(256), "gpt2": Sizes(16)}
TINY = {
    "resnet50": Sizes(4, image=32, classes=10),
    "gpt2": Sizes(2, layers=2, width=32, heads=2, vocabulary=97, sequence=16),
}
RATE = {"resnet50": 1e-3, "gpt2": 3e-4}  # of AdamW


@dataclass(frozen=True)
class Task:
    """One process.

    Attributes:
        model: ``"resnet50"`` or ``"gpt2"``.
        way: one of `benchmarks/gpu.py`'s ways.
        library: ``"tensorflow"``, ``"jax"`` (both Keras) or ``"torch"``.
        device: ``"gpu"`` or ``"cpu"``.
        steps: of each timed round.
        rounds: timed ones.
        warm: steps before them, the first of which compiles.
        tiny: whether the model is small.
        batch: rows of a step; 0 for the model's own.
        strategy: tfaccel's, or none.
        xla: ``"off"``, ``"jit"`` (`jit_compile=True`) or ``"clusters"`` (tfaccel's option).
        data: ``"host"`` (a batch in the host's memory), ``"pinned"`` (in pages that the GPU can
            read) or ``"device"`` (prefetched to the device).
        fused: whether Adam is one operation a variable.
    """

    model: str
    way: str
    library: str = "tensorflow"
    device: str = "gpu"
    steps: int = 25
    rounds: int = 2
    warm: int = 8
    tiny: bool = False
    batch: int = 0
    strategy: str = ""
    xla: str = "off"
    data: str = "host"
    fused: bool = False

    @property
    def sizes(self) -> Sizes:
        """Of the model."""
        sizes = (TINY if self.tiny else SIZES)[self.model]
        return Sizes(**{**vars(sizes), "batch": self.batch or sizes.batch})

    @property
    def unit(self) -> str:
        """What is counted."""
        return "images" if self.model == "resnet50" else "tokens"

    @property
    def units(self) -> int:
        """How many of them a step trains on."""
        return self.sizes.batch * (1 if self.model == "resnet50" else self.sizes.sequence)


def flops_per_unit(task: Task) -> float:
    """Floating-point operations that training takes for one image or token.

    A multiplication and an addition are two, and the backward pass counts as two forward ones. Only
    convolutions and products of matrices count; attention counts whole, though half is masked
    (Chowdhery et al., "PaLM", 2022, appendix B, https://arxiv.org/abs/2204.02311).

    >>> round(flops_per_unit(Task("resnet50", "")) / 1e9, 1), round(
    ...     flops_per_unit(Task("gpt2", "")) / 1e6
    ... )
    (23.1, 854)
    """
    s = task.sizes
    if task.model == "gpt2":
        weights = s.layers * 12 * s.width**2 + s.width * s.vocabulary
        return 6.0 * weights + 12.0 * s.layers * s.width * s.sequence
    side = s.image // 2
    products = side**2 * 7 * 7 * 3 * 64
    side, inner, given = side // 2, 64, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        side = side if stage == 0 else -(-side // 2)
        for block in range(blocks):
            products += side**2 * (given * inner + 9 * inner**2 + 4 * inner**2)
            products += side**2 * given * 4 * inner if block == 0 else 0
            given = 4 * inner
        inner *= 2
    return 6.0 * (products + given * s.classes)


def peak_tflops(card: str) -> float | None:
    """Of a card, by its name; None for one that is not in the table.

    >>> peak_tflops("NVIDIA H100 80GB HBM3")
    989.0
    """
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)
