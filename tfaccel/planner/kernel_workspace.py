"""Memory that TensorFlow's own CPU kernels allocate while they run, besides their results.

Kernels of convolution gradients lay out image patches as rows of a matrix, as many images at a time
as fit into 30 MB (`conv_grad_filter_ops.cc`, `conv_grad_input_ops_cpu` of TensorFlow 2.21). A
product of matrices on several threads reserves blocks for copies of its operands too
(`packed_mem_` in Eigen's `TensorContractionThreadPool.h`), and hardly writes to them: of 17.2 MB
for (16384, 256) x (256, 256) none became resident. They are not counted. oneDNN's and GPU kernels
have other needs, which are not counted either.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from tfaccel.planner.steps import Step

_SET = 30 << 20
_PER_THREAD = 256 << 10


def of_processor(step: Step, shapes: Sequence[tuple[int, ...] | None]) -> dict[int, int]:
    """Bytes by operation, for those that need any."""
    found = {}
    for i, op in enumerate(step.operations):
        if op.kind not in ("Conv2DBackpropFilter", "Conv2DBackpropInput"):
            continue
        kernel = shapes[op.outputs[0] if op.kind.endswith("Filter") else op.inputs[1]]
        result = shapes[op.inputs[2]]
        if kernel is None or result is None:
            continue
        width = step.values[op.outputs[0]].width
        patch, image, channels = math.prod(kernel[:-1]), math.prod(result[1:-1]), result[-1]
        unit = image * patch + image * channels + patch * channels
        images = min(result[0], -(-_SET // (width * unit)))
        threads = os.cpu_count() or 1
        if op.kind.endswith("Input") and unit // threads >= _PER_THREAD // width:
            images = 1  # threads share one image
        found[i] = images * image * patch * width
    return found
