"""Operations that DTensor may run replicated: every device computes all of them.

DTensor rejects an operation for which it has no layout rule, unless the operation is listed by name
to run on gathered inputs. Such an operation gains no speed from the mesh; its numbers are those of
one device, provided that it depends only on its inputs.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from tfaccel.distribute import _private


def replicated() -> list[str]:
    """The types of all operations of this TensorFlow that may run replicated."""
    return [name for name in dir(tf.raw_ops) if not name.startswith("_") and is_pure(name)]


@functools.cache
def is_pure(operation: str) -> bool:
    """Whether an operation of this type depends only on its inputs.

    Excluded are stateful operations, as every device would have its own state; those that call
    functions; and those on resources or TensorLists, with which the fallback silently gives wrong
    numbers.

    >>> is_pure("ArgMin"), is_pure("RandomUniform"), is_pure("TensorListStack"), is_pure("While")
    (True, False, False, False)
    """
    return _private.is_pure(operation)


# Where DTensor fails at one of these, the operands' layout is not the reason: a shape depends on
# values.
_TAKE_ALL = ("Cast", "Identity", "IdentityN", "Reshape", "StridedSlice")


def may_be_replicated(operation: str) -> bool:
    """Whether whole operands may help where DTensor has failed at an operation of this type."""
    own = operation.startswith("DTensor") or operation in _TAKE_ALL
    return not own and is_pure(operation)


# The operations without a DTensor rule that are covered by rows of tests/model_parallel/coverage,
# or by test_quantize.py (the product of int8 features) or test_operations.py next to it, each of
# which equals one device.
REPLICATED_OPS: tuple[str, ...] = (
    "AsString",
    "AvgPool3DGrad",
    "AvgPoolGrad",
    "BatchMatMulV3",
    "BatchToSpaceND",
    "Bucketize",
    "CTCGreedyDecoder",
    "DepthToSpace",
    "DepthwiseConv2dNativeBackpropFilter",
    "DepthwiseConv2dNativeBackpropInput",
    "HSVToRGB",
    "ImageProjectiveTransformV3",
    "MatrixDiagPartV3",
    "MatrixSetDiagV3",
    "MatrixSolve",
    "MirrorPad",
    "MirrorPadGrad",
    "ResizeBicubic",
    "ResizeBicubicGrad",
    "ReverseV2",
    "RGBToHSV",
    "Roll",
    "ScaleAndTranslate",
    "ScaleAndTranslateGrad",
    "SoftsignGrad",
    "SpaceToBatchND",
    "SpaceToDepth",
    "SparseToDense",
    "StatelessRandomGammaV3",
    "StringToHashBucketStrong",
)
