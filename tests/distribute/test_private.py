"""Watches the private names of TensorFlow and Keras: says which one moved.

The observations are made in one child process, because some of them set up logical devices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.distribute.private"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("SEEN "))


def test_keras_array_pipeline_can_be_taken_apart(seen: dict[str, Any]) -> None:
    own = seen["array pipelines"].pop("a user's own")
    assert own is False, "array_pipeline takes a user's dataset for Keras's own"
    assert all(seen["array pipelines"].values()), (
        f"array_pipeline no longer knows what fit makes of arrays: {seen['array pipelines']}"
    )


def test_fit_can_be_seen_from_its_dataset(seen: dict[str, Any]) -> None:
    # fit, fit with callbacks, evaluate, predict; and not the script that asks by itself.
    assert seen["callers"] == ["NoneType", "list", "NoneType", "NoneType"], (
        "calling_model no longer finds the model and the callbacks of fit, evaluate and predict"
    )


def test_a_loop_outside_of_replicas(seen: dict[str, Any]) -> None:
    assert seen["loop outside of replicas"] == {
        "recording": [False, True],
        "gradients": [True, True],
        "copies alike": True,
        "loss undivided": True,
    }, "a function that reads the call stack no longer sees what Keras does"


def test_callers_and_their_steps(seen: dict[str, Any]) -> None:
    assert seen["methods"] == [
        ["fit", [None, None, None], False, [1, 1]],
        ["fit", [None, None, None], False, [1, 1]],
        ["evaluate", [None, None, None], False, [1, 1]],
        ["predict", [None, None, None], False, [1, 1]],
        ["fit", [2, 1, None], False, [1, 2]],
        ["fit", [2, 1, None], True, [1, 1]],
    ], "Keras no longer keeps its steps where calling_model looks"
    assert seen["iterator"], "a dataset's iterator is no longer an OwnedIterator"


def test_keras_functions_are_known(seen: dict[str, Any]) -> None:
    assert seen["keras functions"] == {"train_step": True, "test_step": True, "predict": True}
    assert seen["plain function"] is False


def test_what_a_thread_does_is_told_by_its_calls(seen: dict[str, Any]) -> None:
    traced = {"train_step": "fit", "test_step": "evaluate", "predict": "predict"}
    assert seen["activities"] == {step: [method, True] for step, method in traced.items()}
    assert seen["not traced"] is False


def test_compiled_losses_and_their_trackers(seen: dict[str, Any]) -> None:
    wrapped = "LossFunctionWrapper"
    names = [[n.replace("MeanSquaredError", wrapped) for n in names] for names in seen["losses"]]
    assert names == [[wrapped], [wrapped, wrapped]]
    assert seen["trackers"] == [0, 2]
    assert seen["layers"] >= 3


def test_masks(seen: dict[str, Any]) -> None:
    assert seen["mask"] == [2, 3], "Keras no longer hangs _keras_mask on an output"
    assert seen["no mask"] is True


def test_global_seed(seen: dict[str, Any]) -> None:
    assert (seen["seed unset"], seen["seed set"]) == (None, 11)


def test_what_has_no_seed_can_be_given_one(seen: dict[str, Any]) -> None:
    assert seen["unseeded"] == [[7, 8]] * 2, "random_seed.get_seed is no longer asked for seeds"
    ours, own = seen["op seeded"]
    assert ours == own


def test_initial_epoch(seen: dict[str, Any]) -> None:
    assert seen["epochs"] == [3, 4], "fit no longer starts at model._initial_epoch"


def test_optimizer_can_be_adopted(seen: dict[str, Any]) -> None:
    assert seen["adopted"] is True


def test_a_batch_is_one_distributed_value_that_may_hold_none(seen: dict[str, Any]) -> None:
    whole, distributed, through, absent, rows = seen["batch"]
    assert (whole, distributed) == (True, True), "Keras no longer sees one leaf"
    assert through, "tf.function no longer takes a batch as one value"
    assert (absent, rows) == ([None, None], [3, 4])


def test_accumulated_gradients_are_available_before_clipping(seen: dict[str, Any]) -> None:
    at, weight, steps, accumulated = seen["clipped"]
    assert (at, weight) == ([2], -2.0), "_clip_gradients is no longer called once an update"
    assert (steps, accumulated) == (4, [[1.0]])


def test_callbacks_call_the_hook_that_decides_on_a_save(seen: dict[str, Any]) -> None:
    asked, written = seen["asked"]
    assert asked == [0, 0, 1, 1], "_should_save_on_batch is no longer asked after each batch"
    assert "x.keras" not in written


def test_fit_requests_results_before_an_epoch_ends(seen: dict[str, Any]) -> None:
    # A public method, but that fit calls it there, whatever the metrics, is not said anywhere.
    assert seen["results"] == ["results", "end"]


@pytest.mark.parametrize("kind", ["dense", "ragged", "sparse"])
def test_batches_of_any_size_are_one_trace(seen: dict[str, Any], kind: str) -> None:
    traces, counted = seen["traces"][kind]
    assert counted == [3, 5, 4]
    assert traces == 1, "tf.function no longer asks AnyRows for its _type_spec"


def test_batches_of_fixed_rows_are_a_trace_for_each_size(seen: dict[str, Any]) -> None:
    assert seen["fixed"] == [[3, 2], [5, 2], [4, 2]], "tf.function no longer asks both specs"


def test_strategies_have_collective_keys_of_their_own(seen: dict[str, Any]) -> None:
    assert all(seen["key bases"]), f"TensorFlow no longer reads _collective_key_base: {seen}"


def test_reductions_use_rings_on_request(seen: dict[str, Any]) -> None:
    assert seen["rings"] == [[4.0, 4.0], ["RING", "RING"]], (
        "MirroredExtended no longer reduces with _collective_ops"
    )


def test_slots_and_handles_of_variables(seen: dict[str, Any]) -> None:
    momentum, velocity = seen["slots"]
    assert momentum == pytest.approx([0.2, 0.4])
    assert velocity == pytest.approx([0.004, 0.016])
    assert seen["handle"] == [5.0, 6.0]


def test_a_model_is_built_as_by_its_first_batch(seen: dict[str, Any]) -> None:
    before, after = seen["built"]
    assert after == before + 4, "a momentum and a velocity for the kernel and the bias"


def test_compiled_metrics_and_the_mean_loss(seen: dict[str, Any]) -> None:
    assert seen["metrics"] == ["mae"]
    assert seen["loss tracker"] == pytest.approx(seen["loss"], rel=1e-5)


def test_losses_can_be_masked(seen: dict[str, Any]) -> None:
    assert seen["masked mean"] == pytest.approx(3.0)


def test_the_calls_of_a_graph(seen: dict[str, Any]) -> None:
    assert seen["nodes"] == 2, "a third call is in no model"


def test_a_keras_variable_holds_one_of_tensorflow(seen: dict[str, Any]) -> None:
    assert seen["held"] == [1.0, 2.0, True], "keras.Variable no longer holds it as _value"


def test_what_has_fit_is_known(seen: dict[str, Any]) -> None:
    assert seen["trainers"] == [True, False, False, True, True]
    assert seen["set strategy"] == [True, True], (
        "a model no longer keeps its strategy as _distribute_strategy"
    )


def test_the_state_of_unseeded_random_operations(seen: dict[str, Any]) -> None:
    assert seen["seed generator"], "Keras keeps its global seed generator elsewhere"


def test_an_optimizer_knows_its_variables(seen: dict[str, Any]) -> None:
    assert seen["optimizer keys"] == 1
    assert seen["trained by"] == [False, True]


def test_a_function_forgets_its_traces(seen: dict[str, Any]) -> None:
    assert seen["forgotten"] == [1, 7.0, 2]


def test_side_effects_are_ordered_by_trace(seen: dict[str, Any]) -> None:
    assert seen["side effects"] == [False, True, True, True, False, False, True], (
        "is_ordered_by_trace or leave_unordered no longer sees what TensorFlow orders"
    )
    assert seen["waits"] == [["PrintV2"], ["PrintV2"]], (
        "TensorFlow no longer lets side effects wait for those before them, or run_after does not"
    )
    assert seen["functions"] == [True, False, 5]


def test_a_process_knows_its_first_replica(seen: dict[str, Any]) -> None:
    assert seen["first replica"] == 0


def test_keras_builds_a_model_by_symbolic_build(seen: dict[str, Any]) -> None:
    methods = ["fit", "evaluate", "train_on_batch", "test_on_batch", "evaluate"]
    assert seen["build methods"] == methods
    assert seen["building"] == [True] * 3, "Keras no longer requests the scope to build a model"


def test_the_model_that_predicts_is_seen(seen: dict[str, Any]) -> None:
    assert seen["predicting"] == [True]


def test_tpu_strategy(seen: dict[str, Any]) -> None:
    assert all(seen["tpu"]), f"TensorFlow's TPU strategy was rebuilt: {seen['tpu']}"


def test_what_losses_are_made_of(seen: dict[str, Any]) -> None:
    assert seen["wrapped"] == ["dice", True, ["squares"]], "Keras no longer wraps functions so"
    assert seen["additional"] == pytest.approx(100.0, rel=1e-4), (
        "Keras's loss no longer sums entries of model.losses by _aggregate_additional_loss"
    )


def test_states_of_layers_and_metrics(seen: dict[str, Any]) -> None:
    assert seen["own states"] == ["own"]
    assert seen["metric states"] == 1
    assert seen["metrics in"] == ["mae"], "compile's metrics are held otherwise"
    assert seen["held variables"] == [True, True], (
        "a keras.Variable's TensorFlow variable is not in _value"
    )


def test_a_step_knows_its_batch_its_replica_and_its_caller(seen: dict[str, Any]) -> None:
    noticed = seen["in a step"]
    assert noticed["replicas"] == [0, 1], "a replica's number is no longer its _replica_id"
    assert noticed["counted"] == [2, 2], "the user's code no longer sees all replicas"
    assert noticed["mean"], "TensorFlow no longer sees one replica inside a step"


def test_operations_can_be_replaced(seen: dict[str, Any]) -> None:
    assert seen["replaced"] == [[3.0, 3.0], [3.0, 3.0]], "graphs make operations elsewhere now"


def test_the_function_of_a_metric(seen: dict[str, Any]) -> None:
    assert seen["metric functions"] == [2.0, True, True]


def test_the_functions_of_datasets(seen: dict[str, Any]) -> None:
    assert seen["functions of datasets"] == [True, True, False, False, True, True, True, False]


def test_the_function_of_a_step(seen: dict[str, Any]) -> None:
    assert seen["function of a step"] == [True, True]


def test_traces_and_the_functions_that_they_call_can_be_read(seen: dict[str, Any]) -> None:
    before, count, types = seen["traced graphs"]
    assert (before, count) == (0, 1), "reading traces is to trace nothing"
    assert {"If", "RandomStandardNormal"} <= set(types), "a function's functions are left out"
