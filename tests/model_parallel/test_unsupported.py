"""What an error says of a model that cannot run on a mesh."""

from __future__ import annotations

import keras
import pytest

from tfaccel.distribute.model_parallel.unsupported import check, explanation
from tfaccel.errors import LayoutError

NO_RULE = (
    "<stdin>:1:1: error: 'tf.Roll' op does not implement layout propagation. Please file a "
    "feature request to TF DTensor.\ntensorflow/dtensor/cc/dtensor_graph_to_mlir_pass.cc:152 ::"
)


def test_names_the_innermost_layer_of_the_operation() -> None:
    made = {"Roll": {"net/block_1/shift/Roll"}}
    said = explanation(NO_RULE, made, ["net", "block", "shift"], "net")
    assert said is not None
    assert said.startswith("tfaccel: layer 'shift' of model 'net' uses the operation Roll")
    assert "\n" not in said


WRONG_SHAPE = (
    "Dimensions must be equal, but are 5 and 12 for '{{node net/dense_1/MatMul}} = MatMul[T="
    "DT_FLOAT, grad_a=false](data, net/dense_1/Cast)' with input shapes: [16,5], [12,32].\n"
    "tensorflow/dtensor/cc/dtensor_device_util.cc:911 :: "
)


def test_a_batch_of_another_shape_is_no_matter_of_layouts() -> None:
    said = explanation(WRONG_SHAPE, {}, ["net", "dense"], "net")
    assert said == (
        "tfaccel: model 'net' was given an incompatible batch (Dimensions must be "
        "equal, but are 5 and 12 for net/dense_1/MatMul with input shapes: [16,5], [12,32].); "
        "expected the shapes that it was built for: compare model.input_shape with the data."
    )


def test_names_all_layers_that_it_may_be() -> None:
    made = {"Roll": {"net/shift/Roll", "net/turn/Roll"}}
    said = explanation(NO_RULE, made, ["shift", "turn"], "net")
    assert said is not None
    assert said.startswith("tfaccel: one of the layers 'shift', 'turn' of model 'net' uses")


def test_names_the_model_where_no_layer_is_known() -> None:
    said = explanation(NO_RULE, {}, ["net", "shift"], "net")
    assert said is not None
    assert said.startswith("tfaccel: model 'net' uses the operation Roll")


def test_leaves_other_errors_alone() -> None:
    assert explanation("OOM when allocating tensor", {}, [], "net") is None


def test_random_crop_is_not_divided_in_training_alone() -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.RandomCrop(6, 6, name="crop")])
    check(model, training=False, device_type="CPU")
    with pytest.raises(LayoutError, match=r"layer 'crop' \(RandomCrop\) .* dataset\.map"):
        check(model, training=True, device_type="CPU")


def test_grouped_conv3d_is_not_divided_on_cpus_alone() -> None:
    layer = keras.layers.Conv3D(4, 2, groups=2, name="volume")
    model = keras.Sequential([keras.Input((4, 4, 4, 4)), layer])
    check(model, training=True, device_type="GPU")
    with pytest.raises(LayoutError, match=r"layer 'volume' \(Conv3D\) has groups=2"):
        check(model, training=False, device_type="CPU")


def test_counting_categories_is_not_divided() -> None:
    class Counts(keras.Model):  # a functional or Sequential model does so on the host
        def __init__(self) -> None:
            super().__init__()
            self.counts = keras.layers.CategoryEncoding(4, "count", name="counts")

    model = Counts()
    with pytest.raises(LayoutError, match=r"layer 'counts' \(CategoryEncoding\) .* dataset\.map"):
        check(model, training=False, device_type="CPU")
