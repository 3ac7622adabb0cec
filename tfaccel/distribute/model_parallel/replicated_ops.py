"""Operations that DTensor may run replicated: every device computes the whole of them.

DTensor refuses an operation for which it has no layout rule, unless it is listed by name that the
operation may run on gathered inputs. Such an operation gains no speed from the mesh; its numbers
are those of one device, provided that it depends on its inputs alone.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from tfaccel.distribute import _private


def replicated() -> list[str]:
    """The types of all operations that may run replicated, of this TensorFlow."""
    return [name for name in dir(tf.raw_ops) if not name.startswith("_") and is_pure(name)]


@functools.cache
def is_pure(operation: str) -> bool:
    """Whether an operation of this type depends on its inputs alone.

    Not so: one with a state, of which every device would have its own; one that calls functions;
    one of resources or of TensorLists, with which the fallback silently gives wrong numbers.

    >>> is_pure("ArgMin"), is_pure("RandomUniform"), is_pure("TensorListStack"), is_pure("While")
    (True, False, False, False)
    """
    return _private.is_pure(operation)


# Where DTensor fails at one of these, it is not for what they are given: a shape depends on values.
_TAKE_ALL = ("Cast", "Identity", "IdentityN", "Reshape", "StridedSlice")


def may_be_replicated(operation: str) -> bool:
    """Whether whole operands may help where DTensor has failed at an operation of this type."""
    own = operation.startswith("DTensor") or operation in _TAKE_ALL
    return not own and is_pure(operation)


# Of the operations without a rule of DTensor's, those that rows of tests/model_parallel/coverage
# hold, or test_quantize.py (the product of int8 features) or test_operations.py beside it, each of
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
