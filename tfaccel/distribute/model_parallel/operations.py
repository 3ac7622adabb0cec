"""Operations that DTensor may run replicated: every device computes the whole of them.

DTensor refuses an operation for which it has no layout rule, unless it is told by name that the
operation may run on gathered inputs. Such an operation gains no speed from the mesh; its numbers
are those of one device.
"""

from __future__ import annotations

# Each of these is in a row of tests/model_parallel/coverage that equals one device, or in
# test_quantize.py (the product of int8 features) or test_operations.py beside it. Never an
# operation of TensorLists: there the fallback gives wrong numbers without a word.
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
