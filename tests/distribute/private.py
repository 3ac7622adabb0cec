"""Uses each private name of `tfaccel.distribute._private`, and prints what came of it."""

import inspect
import json
import os
import tempfile
import threading

import keras
import numpy as np
import tensorflow as tf

import tfaccel
from tfaccel.distribute import _private
from tfaccel.distribute.mirrored import MirroredStrategy
from tfaccel.distribute.mixins import mix_in


def rings():
    """What reduces in a strategy that was told to, though its collectives were another's."""
    strategy = MirroredStrategy(["CPU:0", "CPU:1"])
    nccl = tf.distribute.experimental.CommunicationImplementation.NCCL
    options = tf.distribute.experimental.CommunicationOptions(implementation=nccl)
    extended = strategy.extended
    extended._collective_ops = _private.CollectiveAllReduce(
        extended.worker_devices, 2, options, extended._collective_keys
    )
    _private.use_ring_reduce(extended)

    @tf.function
    def step():
        return strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(2.0))
        )

    total = [float(v) for v in strategy.experimental_local_results(step())]
    launchers = extended._collective_ops._launchers
    return [total, [launcher._options.implementation.value for launcher in launchers]]


def main():
    ours = tfaccel.strategy("mirrored", devices=2, device_type="cpu")

    x, y = np.ones((10, 3), "float32"), np.arange(10) % 2
    seen = {}

    def model(outputs=1):
        inputs = keras.Input((3,))
        heads = [keras.layers.Dense(1, name=f"head{i}")(inputs) for i in range(outputs)]
        made = keras.Model(inputs, heads if outputs > 1 else heads[0])
        made.compile(keras.optimizers.SGD(0.1), ["mse"] * outputs if outputs > 1 else "mse")
        return made

    class Spy(tf.distribute.MirroredStrategy):
        def experimental_distribute_dataset(self, dataset, options=None):
            self.arrays = _private.array_pipeline(dataset)
            return super().experimental_distribute_dataset(dataset, options)

        def run(self, fn, args=(), kwargs=None, options=None):
            name = "predict" if getattr(fn, "__self__", None) is None else fn.__name__
            seen.setdefault("keras functions", {})[name] = _private.is_keras_function(fn)
            activity = _private.activity(threading.get_ident())
            seen.setdefault("activities", {})[name] = [activity.method, activity.traces]
            return super().run(fn, args, kwargs, options)

    spy = Spy(["CPU:0", "CPU:1"])
    with spy.scope():
        one, two = model(), model(2)
    pipelines = {}
    for name, how in {
        "shuffled": {},
        "in order": {"shuffle": False},
        "batches shuffled": {"shuffle": "batch"},
        "class weights": {"class_weight": {0: 1.0, 1: 2.0}},
        "sample weights": {"sample_weight": y + 1.0},
    }.items():
        one.fit(x, y, batch_size=4, verbose=0, **how)
        pipelines[name] = spy.arrays is not None and spy.arrays[1][0].__name__ == "grab_batch"
    one.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0)
    pipelines["a user's own"] = spy.arrays is not None
    seen["array pipelines"] = pipelines

    one.evaluate(x, y, batch_size=10, verbose=0)
    one.predict(x, batch_size=10, verbose=0)

    class Asked(MirroredStrategy):
        def experimental_distribute_dataset(self, dataset, options=None):
            caller = _private.calling_model()
            if caller is not None:
                steps = caller.epoch.steps_per_execution, caller.epoch.num_batches
                methods.append([caller.method, caller.limits, caller.validates, steps])
            return super().experimental_distribute_dataset(dataset, options)

        def _prepare_callbacks(self, callbacks):
            callers.append(type(callbacks).__name__)

    callers, methods = [], []
    asked = Asked(["CPU:0", "CPU:1"])
    with asked.scope():
        other = model()
    other.fit(x, y, batch_size=10, verbose=0)
    other.fit(x, y, batch_size=10, verbose=0, callbacks=[keras.callbacks.LambdaCallback()])
    other.evaluate(x, y, batch_size=10, verbose=0)
    other.predict(x, batch_size=10, verbose=0)
    asked.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2))
    seen["callers"] = list(callers)
    other.fit(
        *(x, y), batch_size=5, steps_per_epoch=2, verbose=0, validation_data=(x, y),
        validation_steps=1, validation_batch_size=2,
    )  # fmt: skip
    seen["methods"] = methods
    seen["iterator"] = type(iter(tf.data.Dataset.range(1))) is _private.DatasetIterator
    two.fit(x, [y, y], batch_size=10, verbose=0)
    seen["losses"] = [
        [type(loss).__name__ for loss in _private.compiled_losses(m)] for m in (one, two)
    ]
    seen["trackers"] = [len(_private.loss_trackers(m)) for m in (one, two)]
    seen["layers"] = len(
        _private.layers_of(
            keras.Sequential([keras.Input((3,)), keras.Sequential([keras.layers.Dense(1)])])
        )
    )
    seen["not traced"] = _private.activity(threading.get_ident()).traces
    seen["plain function"] = _private.is_keras_function(lambda: None)

    with ours.scope():
        looped = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        made_in, mean = keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError()
        recording = [_private.is_recording()]
        with tf.GradientTape() as tape:
            recording.append(_private.is_recording())
            loss = mean(y[:4, None], looped(x[:4]))
        before = np.mean(np.square(y[:4, None] - looped.predict(x[:4], verbose=0)))
        grads = tape.gradient(loss, looped.trainable_variables)
        made_in.apply(grads, looped.trainable_variables)
    copies = [v.numpy().tolist() for v in looped.layers[0].kernel.value.values]
    seen["loop outside of replicas"] = {
        "recording": recording,
        "gradients": [g is not None for g in grads],
        "copies alike": copies[0] == copies[1],
        "loss undivided": bool(np.isclose(loss, before, rtol=1e-5)),
    }
    masked = keras.layers.Masking()(tf.zeros((2, 3, 4)))
    seen["mask"] = list(_private.keras_mask(masked).shape)
    seen["no mask"] = _private.keras_mask(tf.zeros(3)) is None
    seen["seed unset"] = _private.global_seed()
    _private.seed_unseeded(lambda: (7, 8))
    noise = tf.function(lambda: tf.random.uniform([])).get_concrete_function().graph
    order = tf.data.Dataset.range(9).shuffle(9)
    op_seeded = tf.data.Dataset.range(9).shuffle(9, seed=3)
    _private.seed_unseeded(None)
    (uniform,) = [op for op in noise.get_operations() if op.type == "RandomUniform"]
    seeds = [uniform.get_attr("seed"), uniform.get_attr("seed2")]
    seen["unseeded"] = [seeds, [int(order._seed), int(order._seed2)]]
    own = tf.data.Dataset.range(9).shuffle(9, seed=3)
    seen["op seeded"] = [list(map(int, op_seeded)), list(map(int, own))]
    tf.random.set_seed(11)
    seen["seed set"] = _private.global_seed()

    epochs = []

    class Epochs(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _private.set_initial_epoch(self.model, 3)

        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)

    alone = model()
    alone.fit(x, y, epochs=5, verbose=0, callbacks=[Epochs()])
    seen["epochs"] = epochs

    optimizer = keras.optimizers.SGD()
    _private.adopt_optimizer(optimizer, ours)
    with ours.scope():
        variable = keras.Variable(1.0)
        optimizer.build([variable])
    seen["adopted"] = optimizer._distribution_strategy is ours

    given = _private.PerReplicaBatch([{"a": tf.zeros(2), "b": (None, tf.ones(n))} for n in (3, 4)])
    through = tf.function(lambda batch: batch)(given)
    seen["batch"] = [
        keras.tree.flatten(given) == [given],
        isinstance(given, tf.distribute.DistributedValues),
        isinstance(through, _private.PerReplicaBatch),
        [part["b"][0] for part in through.values],
        [len(part["b"][1]) for part in through.values],
    ]

    class Clips(_private.BeforeClipping, keras.optimizers.SGD):
        def before_clipping(self, grads):
            clipped.append(_private.accumulation(self)[0].numpy())
            return [g * 0 + 3 for g in grads]

    clipped = []
    clips = Clips(1.0, clipnorm=2.0, gradient_accumulation_steps=3)
    variable = keras.Variable([0.0])
    for _ in range(4):
        clips.apply([tf.ones([1])], [variable])
    count, accumulated = _private.accumulation(clips)
    seen["clipped"] = [
        [int(n) for n in clipped],
        float(variable.numpy()[0]),
        int(count.numpy()),
        [v.numpy().tolist() for v in accumulated],
    ]

    class Saves(_private.BeforeSaving, keras.callbacks.ModelCheckpoint):
        def due(self, batch):
            asked.append(batch)
            return False

    class BacksUp(_private.BeforeSaving, keras.callbacks.BackupAndRestore):
        def due(self, batch):
            asked.append(batch)
            return False

    asked = []
    with tempfile.TemporaryDirectory() as folder:
        saves = Saves(f"{folder}/x.keras", save_freq=1), BacksUp(f"{folder}/b", save_freq=1)
        model().fit(x, y, batch_size=5, verbose=0, callbacks=[*saves])
        seen["asked"] = [asked, sorted(os.listdir(folder))]

    results = []

    class Asks(keras.Sequential):
        def get_metrics_result(self):
            if tf.executing_eagerly():
                results.append("results")
            return super().get_metrics_result()

    asks = Asks([keras.Input((3,)), keras.layers.Dense(1)])
    asks.compile("sgd", "mse")
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: results.append("end"))
    asks.fit(x, y, verbose=0, steps_per_epoch=1, callbacks=[note])
    seen["results"] = results

    traces = []

    @tf.function(reduce_retracing=True)
    def rows(batch):
        traces.append(1)
        first = ours.experimental_local_results(batch)[0]
        if isinstance(first, tf.SparseTensor):
            return first.dense_shape[0]
        return tf.cast(
            first.nrows() if isinstance(first, tf.RaggedTensor) else tf.shape(first)[0], "int64"
        )

    kinds = {
        "dense": lambda n: tf.zeros((n, 2)),
        "ragged": lambda n: tf.RaggedTensor.from_row_lengths(tf.zeros(n), tf.ones(n, tf.int64)),
        "sparse": lambda n: tf.sparse.from_dense(tf.eye(n)[:, :1]),
    }
    seen["traces"] = {}
    for kind, make in kinds.items():
        traces.clear()
        counted = [int(rows(_private.PerReplicaBatch((make(n), make(n + 1))))) for n in (3, 5, 4)]
        seen["traces"][kind] = [len(traces), counted]

    @tf.function(reduce_retracing=True)
    def fixed(batch):
        shapes.append(list(ours.experimental_local_results(batch)[0].shape))
        return 0

    shapes = []
    for n in (3, 5, 3, 4):
        fixed(_private.PerReplicaBatch((tf.zeros((n, 2)), tf.zeros((n, 2))), static_rows=True))
    seen["fixed"] = shapes

    class Bases:
        pass

    a, b = Bases(), Bases()
    _private.reserve_collective_keys(a)
    _private.reserve_collective_keys(b)
    from tensorflow.python.distribute.collective_all_reduce_strategy import (
        CollectiveAllReduceStrategy,
    )

    seen["key bases"] = [
        a._collective_key_base != b._collective_key_base,
        ours.extended._collective_keys._group_key > 1 << 20,
        hasattr(CollectiveAllReduceStrategy, "_collective_key_base"),
    ]

    adam, weight = keras.optimizers.Adam(0.5), keras.Variable([1.0, 2.0])
    adam.build([keras.Variable([0.0]), weight])
    adam.apply([tf.ones([1]), tf.constant([2.0, 4.0])])
    seen["slots"] = [np.array(slot).tolist() for slot in _private.adam_slots(adam, weight)]
    tf.raw_ops.AssignVariableOp(resource=_private.handle(weight), value=tf.constant([5.0, 6.0]))
    seen["handle"] = np.array(weight).tolist()

    counts = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    counts.compile("adam", "mse", metrics=["mae"])
    batch = keras.KerasTensor((4, 3)), keras.KerasTensor((4, 1))
    before = len(counts.optimizer.variables)
    _private.build_all(counts, *batch)
    seen["built"] = [before, len(counts.optimizer.variables)]
    seen["metrics"] = [m.name for m in _private.compiled_metrics(counts)]
    counts.evaluate(x, y, verbose=0)
    seen["loss tracker"] = float(_private.loss_tracker(counts).result())
    seen["loss"] = float(np.mean((counts.predict(x, verbose=0)[:, 0] - y) ** 2))

    class Masked(keras.losses.Loss):
        def call(self, y_true, y_pred):
            values = y_pred - y_true
            _private.set_keras_mask(values, tf.constant([True, False]))
            return values

    seen["masked mean"] = float(Masked()(tf.zeros(2), tf.constant([3.0, 5.0])))
    same = keras.layers.Dense(3)
    inputs = keras.Input((3,))
    twice = keras.Model(inputs, same(same(inputs)))
    same(keras.Input((3,)))
    nodes = _private.graph_nodes(twice)
    seen["nodes"] = [n.operation is same for n in nodes].count(True)

    held, other = keras.Variable(1.0), tf.Variable(2.0)
    first = _private.tf_variable(held)
    _private.set_tf_variable(held, other)
    seen["held"] = [float(first), float(held), _private.tf_variable(held) is other]
    trainers = (counts, same, _private.TensorFlowTrainer())
    seen["trainers"] = [_private.is_trainer(each) for each in trainers]
    trainers, optimizers = _private.live_trainers_and_optimizers()
    seen["trainers"].append(any(each is counts for each in trainers))
    seen["trainers"].append(any(each is adam for each in optimizers))
    seen["set strategy"] = [_private.strategy_at_compile(counts) is None]
    _private.set_strategy(counts, spy)
    seen["set strategy"] += [counts.distribute_strategy is spy]
    _private.set_strategy(counts, None)
    keras.random.normal((1,))
    seen["seed generator"] = isinstance(
        _private.global_seed_generator(), keras.random.SeedGenerator
    )
    by_key = vars(adam)["_trainable_variables_indices"]
    seen["optimizer keys"] = by_key.get(_private.optimizer_key(adam, weight))
    seen["trained by"] = [v is weight for v in _private.trained_by(adam)]
    traces = []
    twice_traced = tf.function(lambda: traces.append(1) or held + 1.0)
    twice_traced(), twice_traced(), _private.forget_traces(twice_traced)
    _private.set_tf_variable(held, tf.Variable(6.0))
    seen["forgotten"] = [len(traces), float(twice_traced()), len(traces)]
    with tf.Graph().as_default() as bare:
        seen["side effects"] = [_private.leave_unordered(bare, [])]

    @tf.function
    def effects():
        begun = [tf.print("a", output_stream=spoken), tf.raw_ops.Assert(condition=True, data=[""])]
        free = tf.raw_ops.Assert(condition=True, data=["free"])
        ordered = [*begun, free, held.assign_add(0.0).op, tf.constant(1.0).op]
        seen["side effects"] += [_private.is_ordered_by_trace(op) for op in ordered]
        seen["side effects"] += [_private.leave_unordered(free.graph, [free])]
        _private.run_after(free, begun[0])
        return tf.constant(0)

    spoken = f"file://{os.devnull}"
    operations = {op.name: op for op in effects.get_concrete_function().graph.get_operations()}
    waits = [operations[name].control_inputs for name in ("Assert", "Assert_1")]
    seen["waits"] = [[op.type for op in each] for each in waits]
    seen["functions"] = [_private.is_function(f) for f in (effects, model)]
    seen["functions"] += [int(_private.function_like(effects, lambda: tf.constant(5))())]
    seen["first replica"] = _private.first_replica(ours)

    class Builds(_private.BuildsFromSteps):
        def build_for(self, method, batch, failed):
            methods.append(method)
            return len(methods) % 2 == 0

    class Scopes(tf.distribute.MirroredStrategy):
        def scope(self):
            builds.append(_private.building_model())
            return super().scope()

        def run(self, fn, args=(), kwargs=None, options=None):
            predicts.append(_private.predicting_model())
            return super().run(fn, args, kwargs, options)

    methods, builds, predicts = [], [], []
    with Scopes(["CPU:0", "CPU:1"]).scope():
        built = model()
    mix_in(built, Builds)
    built.fit(x, y, batch_size=10, validation_data=(x, y), verbose=0)
    builds.clear()
    built.train_on_batch(x, y[:, None])
    built.test_on_batch(x, y[:, None])
    built.evaluate(x, y, verbose=0)
    seen["build methods"] = methods
    seen["building"] = [each is built for each in builds if each is not None]
    predicts.clear()
    built.predict_on_batch(x)
    seen["predicting"] = [each is built for each in predicts]

    def squares(y_true, y_pred):
        return y_pred

    dice = keras.losses.Dice(axis=(1,))
    wrapped = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    wrapped.compile("sgd", squares)
    wrapped.train_on_batch(x, y)
    seen["wrapped"] = [
        _private.wrapped_function(dice)[0].__name__,
        _private.wrapped_function(dice)[1]["axis"] == (1,),
        [_private.wrapped_function(loss)[0].__name__ for loss in _private.compiled_losses(wrapped)],
    ]

    class Adds(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.sum(x, axis=-1))
            return x

    added = keras.Sequential([keras.Input((3,)), Adds(), keras.layers.Dense(1)])
    plain_sum = _private.additional_losses(added)
    _private.sum_additional_losses(added, lambda loss: 100.0 + 0.0 * plain_sum(loss))
    added.compile(keras.optimizers.SGD(0.0), "mse")
    mse = float(np.mean((added.predict(x, verbose=0)[:, 0] - y) ** 2))
    seen["additional"] = float(added.evaluate(x, y, batch_size=10, verbose=0)) - mse

    class Kept(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.own = self.add_weight(shape=(), trainable=False, name="own")
            self.norm = keras.layers.BatchNormalization()
            self.norm.build((None, 3))
            self.drop = keras.layers.Dropout(0.5, seed=1)

    kept, f1 = Kept(), keras.metrics.MeanIoU(2)
    seen["own states"] = [v.name for v in _private.own_states(kept)]
    seen["metric states"] = len(_private.own_states(f1))
    counts.fit(x, y, verbose=0)
    inside = [inner for held in counts.metrics for inner in _private.metrics_in(held)]
    seen["metrics in"] = [m.name for held in inside for m in _private.metrics_in(held)]
    seen["held variables"] = [
        isinstance(_private.tf_variable(kept.own), tf.Variable),
        _private.tf_variable(_private.tf_variable(kept.own)) is _private.tf_variable(kept.own),
    ]

    from tensorflow.python.distribute import tpu_strategy

    seen["tpu"] = [
        "_enable_packed_variable_in_eager_mode" in inspect.getsource(tpu_strategy),
        tpu_strategy.TPUExtended is _private.TPUExtended,
    ]
    seen["rings"] = rings()
    print()
    noticed = {}

    class Looks(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.dense.build((None, 3))
            self.built = True

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            numbers = noticed.setdefault("replicas", [])
            numbers.append(_private.local_replica_index())
            noticed["batch"] = type(_private.batch_of_step()).__name__
            strategy = tf.distribute.get_strategy()
            context = tf.distribute.get_replica_context()
            noticed["counted"] = [strategy.num_replicas_in_sync, context.num_replicas_in_sync]
            rows = tf.reduce_mean(tf.square(self(data[0])), axis=1)
            return {"mean": tf.nn.compute_average_loss(tf.reshape(rows, [5]))}

    ours.checks.mode = "off"  # a batch of five rows is part of the program
    with ours.scope():
        looks = Looks()
        looks.compile(keras.optimizers.SGD(0.1))
    mean = looks.fit(x, y, batch_size=10, verbose=0).history["mean"][0]
    noticed["mean"] = abs(mean - float(np.mean(np.square(looks.predict(x, verbose=0))))) < 1e-5
    noticed["replicas"] = sorted(set(noticed["replicas"]))
    seen["in a step"] = noticed

    @tf.function
    def drawn():
        with tf.GradientTape() as tape:
            tape.watch(start := tf.ones([2]))
            outputs = tf.cond(start[0] > 0, lambda: tf.random.normal([2]) * start, lambda: start)
        return outputs, tape.gradient(outputs, start)

    with _private.operations_replaced(
        lambda op: [tf.fill(op.inputs[0], 3.0)] if op.type == "RandomStandardNormal" else None
    ):
        outputs = drawn()
    seen["replaced"] = [o.numpy().tolist() for o in outputs]

    def off_by(y_true, y_pred, by=1.0):
        return y_pred - y_true + by

    wrapper = keras.metrics.MeanMetricWrapper(off_by, by=2.0)
    bound = _private.metric_function(wrapper)
    seen["metric functions"] = [
        bound(1.0, 1.0), bound.__module__ == __name__,
        _private.metric_function(keras.metrics.Mean()) is None,
    ]  # fmt: skip

    def mapped(row):
        return row

    rows_of_eight = tf.data.Dataset.range(8)
    seen["functions of datasets"] = [
        _private.user_function(dataset) is mapped
        for dataset in (
            rows_of_eight.map(mapped),
            rows_of_eight.map(mapped, num_parallel_calls=2),
            rows_of_eight.filter(lambda row: mapped(row) > 0),
            rows_of_eight.batch(2),
        )
    ]
    flat = rows_of_eight.batch(2).flat_map(tf.data.Dataset.from_tensor_slices)
    seen["functions of datasets"] += [
        getattr(_private.user_function(flat), "__name__", None) == "from_tensor_slices",
        _private.user_function(rows_of_eight.filter(lambda row: row > 0)) is not None,
        _private.is_parallel(rows_of_eight.map(mapped, num_parallel_calls=2)),
        _private.is_parallel(rows_of_eight.map(mapped)),
    ]

    inner = tf.function(lambda v: tf.random.normal(tf.shape(v)))
    outer = tf.function(lambda v: tf.cond(v[0] > 0, lambda: inner(v), lambda: v))
    seen["traced graphs"] = [len(_private.traced_graphs(outer))]
    outer(tf.ones(2))
    for traced in _private.traced_graphs(outer):
        graphs = [traced, *_private.library_graphs(traced)]
        types = {operation.type for graph in graphs for operation in graph.get_operations()}
        seen["traced graphs"] += [outer.experimental_get_tracing_count(), sorted(types)]

    stepping = model()
    stepping.fit(x, y, batch_size=5, verbose=0)
    step = _private.step_function(stepping.train_function)
    stepping.run_eagerly = True
    stepping.make_train_function(force=True)
    seen["function of a step"] = [
        step is not None and hasattr(step, "get_concrete_function"),
        _private.step_function(stepping.train_function) is None,
    ]

    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main()
