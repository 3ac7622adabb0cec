"""Kind 12: custom training loops."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tests.programs.data import labels, one_hot, reals, weights
from tests.programs.program import Numbers, program


def classifier() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(3)])


@program(12, always=True)
def eager_loop_of_the_guide(strategy: Any) -> Numbers:
    """Keras's guide as it stands: no strategy.run, eager steps, metrics, a validation loop"""
    x, y = reals(26, 5), labels(3, 26)
    with strategy.scope():
        model = classifier()
        optimizer = keras.optimizers.SGD(0.2)
        loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    found = []
    for _ in range(2):
        for features, target in data:
            with tf.GradientTape() as tape:
                logits = model(features, training=True)
                loss = loss_fn(target, logits)
            grads = tape.gradient(loss, model.trainable_weights)
            optimizer.apply(grads, model.trainable_weights)
            accuracy.update_state(target, logits)
            found.append(float(loss))
        found.append(float(accuracy.result()))
        accuracy.reset_state()
        for features, target in data:
            accuracy.update_state(target, model(features, training=False))
        found.append(float(accuracy.result()))
        accuracy.reset_state()
    return {"found": found, "weights": weights(model)}


@program(12)
def compiled_loop_of_the_guide(strategy: Any) -> Numbers:
    """The guide's second half: a tf.function without strategy.run, add_loss of a layer"""

    class Active(layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(0.01 * tf.reduce_mean(tf.square(x)))
            return x

    x, y = reals(24, 5), labels(3, 24)
    with strategy.scope():
        inputs = keras.Input((5,))
        h = Active()(layers.Dense(8, "tanh")(inputs))
        model = keras.Model(inputs, layers.Dense(3)(h))
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
        loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy()

    @tf.function
    def train_step(features: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(features, training=True)
            loss = loss_fn(target, logits) + sum(model.losses)
        grads = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(grads, model.trainable_weights)
        accuracy.update_state(target, logits)
        return loss

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    found = [float(train_step(*batch)) for _ in range(2) for batch in data]
    return {"found": found, "accuracy": float(accuracy.result()), "weights": weights(model)}


@program(12, always=True)
def loop_of_tensorflows_guide(strategy: Any) -> Numbers:
    """tf.distribute's guide: a distributed dataset, strategy.run in a tf.function, test metrics"""
    x, y = reals(32, 5), labels(3, 32)
    batch = 8
    with strategy.scope():
        model = classifier()
        optimizer = keras.optimizers.SGD(0.2, momentum=0.9)
        loss_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        test_loss = keras.metrics.Mean(name="test_loss")
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="train_accuracy")

        def compute_loss(target: Any, logits: Any) -> Any:
            return tf.nn.compute_average_loss(loss_object(target, logits), global_batch_size=batch)

    def train_step(inputs: Any) -> Any:
        features, target = inputs
        with tf.GradientTape() as tape:
            logits = model(features, training=True)
            loss = compute_loss(target, logits)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
        accuracy.update_state(target, logits)
        return loss

    def test_step(inputs: Any) -> None:
        features, target = inputs
        test_loss.update_state(loss_object(target, model(features, training=False)))

    @tf.function
    def distributed_train_step(inputs: Any) -> Any:
        losses = strategy.run(train_step, args=(inputs,))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    @tf.function
    def distributed_test_step(inputs: Any) -> Any:
        return strategy.run(test_step, args=(inputs,))

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    train = strategy.experimental_distribute_dataset(data)
    test = strategy.experimental_distribute_dataset(data.take(2))
    found = []
    for _ in range(2):
        total = 0.0
        for inputs in train:
            total += float(distributed_train_step(inputs))
        for inputs in test:
            distributed_test_step(inputs)
        found += [total, float(accuracy.result()), float(test_loss.result())]
        test_loss.reset_state()
        accuracy.reset_state()
    return {"found": found, "weights": weights(model)}


@program(12)
def epoch_in_one_function(strategy: Any) -> Numbers:
    """A whole epoch in a tf.function that goes over the distributed dataset, an F1 score"""
    x, y = reals(24, 5), one_hot(3, 24)
    with strategy.scope():
        model = classifier()
        optimizer = keras.optimizers.SGD(0.3)
        optimizer.build(model.trainable_variables)
        rows_of = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None)
        mean, score = keras.metrics.Mean(), keras.metrics.F1Score(average="macro")

    def step(batch: Any) -> Any:
        features, target = batch
        with tf.GradientTape() as tape:
            logits = model(features, training=True)
            rows = rows_of(target, logits)
            loss = tf.reduce_sum(rows) / 8.0
        of = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        mean.update_state(rows)
        score.update_state(target, tf.nn.softmax(logits))
        return loss

    @tf.function
    def epoch(data: Any) -> Any:
        total, steps = 0.0, 0.0
        for batch in data:
            losses = strategy.run(step, args=(batch,))
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
            steps += 1.0
        return total / steps

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = strategy.experimental_distribute_dataset(data)
    found = []
    for _ in range(2):
        mean.reset_state()
        score.reset_state()
        found += [float(epoch(data)), float(mean.result()), float(score.result())]
    return {"found": found, "weights": weights(model)}


@program(12, always=True)
def loop_inside_the_scope(strategy: Any) -> Numbers:
    """The whole loop inside the scope, steps eager and in a tf.function, parts created outside"""
    x, y = reals(22, 5), labels(3, 22)
    optimizer = keras.optimizers.Adam(0.05, global_clipnorm=0.5)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = []
    with strategy.scope():
        model = classifier()
        overlap = keras.metrics.MeanIoU(3, sparse_y_pred=False)  # its state are integers

        def step(features: Any, target: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(features, training=True)
                loss = loss_fn(target, logits)
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
            overlap.update_state(target, logits)
            return loss

        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        for run in (step, tf.function(step)):
            found += [float(run(*batch)) for batch in data]
            found.append(float(overlap.result()))
    found.append(int(optimizer.iterations.numpy()))
    return {"found": found, "weights": weights(model)}


@program(12)
def steps_with_an_optimizer_made_outside(strategy: Any) -> Numbers:
    """next(iterator) and strategy.run in a tf.function, the optimizer made before the scope"""
    x, y = reals(24, 5), labels(3, 24)
    optimizer = keras.optimizers.Adam(0.05)
    with strategy.scope():
        model = classifier()
        mean = keras.metrics.Mean()
        rows_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(batch: Any) -> Any:
        features, target = batch
        with tf.GradientTape() as tape:
            rows = rows_of(target, model(features, training=True))
            loss = tf.nn.compute_average_loss(rows, global_batch_size=8)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
        mean.update_state(rows)
        return loss

    @tf.function
    def steps(iterator: Any) -> Any:
        total = 0.0
        for _ in tf.range(3):
            losses = strategy.run(step, args=(next(iterator),))
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        return total

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()
    iterator = iter(strategy.experimental_distribute_dataset(data))
    found = [float(steps(iterator)), float(steps(iterator)), float(mean.result())]
    found.append(int(optimizer.iterations.numpy()))
    return {"found": found, "weights": weights(model)}


@program(12)
def loop_of_train_on_batch(strategy: Any) -> Numbers:
    """train_on_batch, test_on_batch and predict_on_batch in a loop with a changing learning rate"""
    x, y = reals(24, 5), labels(3, 24)
    with strategy.scope():
        model = classifier()
        model.compile(
            keras.optimizers.SGD(0.3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    found = []
    for step in range(6):
        rows = slice(4 * step, 4 * step + (4 if step < 5 else 1))
        model.optimizer.learning_rate = 0.3 / (1 + step)
        found.append(model.train_on_batch(x[rows], y[rows], return_dict=True))
    found.append(model.test_on_batch(x[:7], y[:7], return_dict=True))
    return {"found": found, "predict": model.predict_on_batch(x[:3]), "weights": weights(model)}


@program(12)
def moving_means_in_a_loop(strategy: Any) -> Numbers:
    """Moving means of BatchNormalization under strategy.run, with a last batch of five rows"""
    x, y = reals(29, 5), labels(3, 29)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((5,)),
                layers.BatchNormalization(momentum=0.8, synchronized=True),
                layers.Dense(8, "tanh"),
                layers.BatchNormalization(momentum=0.9, synchronized=True),
                layers.Dense(3),
            ]
        )
        plain = layers.BatchNormalization(momentum=0.7)  # of replicas, each by its own rows
        plain.build((None, 5))
        optimizer = keras.optimizers.SGD(0.2)
        rows_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(features: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            rows = rows_of(target, model(features, training=True))
            loss = tf.nn.compute_average_loss(rows, global_batch_size=8)
        of = model.trainable_variables
        optimizer.apply(tape.gradient(loss, of), of)
        plain(features, training=True)
        return loss

    def validate(features: Any, target: Any) -> Any:
        return tf.reduce_sum(rows_of(target, model(features, training=False)))

    def reduced(function: Any) -> Any:
        def run(batch: Any) -> Any:
            return strategy.reduce("SUM", strategy.run(function, args=batch), axis=None)

        return tf.function(run)

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = strategy.experimental_distribute_dataset(data)
    train, test = reduced(step), reduced(validate)
    found = [float(run(batch)) for _ in range(2) for run in (train, test) for batch in data]
    return {"found": found, "weights": weights(model), "mean": plain.moving_mean.numpy()}


@program(12, always=True)
def called_first_outside_of_the_scope(strategy: Any) -> Numbers:
    """Models without an input shape, created in the scope and first called in a loop outside"""

    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.normed = layers.Dense(8, "tanh"), layers.BatchNormalization()
            self.logits = layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.logits(self.normed(self.hidden(x), training=training))

    def step(model: Any, optimizer: Any, features: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_fn(target, model(features, training=True))
        of = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    x, y = reals(24, 5), labels(3, 24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = []
    for compiled in (False, True):
        for made in (Subclassed, lambda: keras.Sequential([layers.Dense(4), layers.Dense(3)])):
            with strategy.scope():
                model, optimizer = made(), keras.optimizers.Adam(0.05)
            run = tf.function(step) if compiled else step
            losses = [float(run(model, optimizer, *batch)) for batch in data]
            found.append({"losses": losses, "weights": weights(model)})
    return {"found": found}


@program(12)
def objects_given_to_the_step(strategy: Any) -> Numbers:
    """strategy.run(step, args=(model, optimizer, metric, batch)), each made inside and outside"""

    def step(model: Any, optimizer: Any, total: Any, batch: Any) -> Any:
        features, target = batch
        with tf.GradientTape() as tape:
            rows = tf.square(model(features, training=True) - target)
            loss = tf.nn.compute_average_loss(rows[:, 0], global_batch_size=8)
        of = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        total.update_state(tf.reduce_sum(target))
        return loss

    x, y = reals(16, 4), reals(16, 1, seed=2)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = strategy.experimental_distribute_dataset(data)
    found = []
    for inside in (lambda part: False, lambda part: part == "model", lambda part: part != "model"):

        def made(part: str, make: Any, inside: Any = inside) -> Any:
            with strategy.scope() if inside(part) else contextlib.nullcontext():
                return make()

        stack = [keras.Input((4,)), layers.BatchNormalization(synchronized=True), layers.Dense(1)]
        model = made("model", lambda stack=stack: keras.Sequential(stack))
        optimizer = made("optimizer", lambda: keras.optimizers.Adam(0.05, global_clipnorm=0.5))
        total = made("metric", keras.metrics.Sum)

        @tf.function
        def run(batch: Any, given: Any = (model, optimizer, total)) -> Any:
            return strategy.reduce("SUM", strategy.run(step, args=(*given, batch)), axis=None)

        losses = [float(run(batch)) for _ in range(2) for batch in data]
        found.append({"losses": losses, "weights": weights(model), "total": float(total.result())})
    return {"found": found}


@program(12)
def an_optimizer_inside_and_a_model_outside(strategy: Any) -> Numbers:
    """An eager loop without strategy.run, whose optimizer alone was made inside the scope"""
    x, y = reals(24, 5), labels(3, 24)
    model = classifier()
    with strategy.scope():
        optimizer = keras.optimizers.Adam(0.05)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = []
    for features, target in tf.data.Dataset.from_tensor_slices((x, y)).batch(8):
        with tf.GradientTape() as tape:
            loss = loss_fn(target, model(features, training=True))
        of = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        found.append(float(loss))
    return {"found": found, "weights": weights(model), "slots": weights(optimizer.variables)}


@program(12, undivided=True)
def episodes_of_an_actor_and_a_critic(strategy: Any) -> Numbers:
    """Reinforcement learning: an episode in a tf.function, step by step into TensorArrays"""

    class ActorCritic(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.common, self.actor = layers.Dense(8, "relu"), layers.Dense(2)
            self.critic = layers.Dense(1)

        def call(self, x: Any) -> Any:
            x = self.common(x)
            return self.actor(x), self.critic(x)

    with strategy.scope():
        model, optimizer = ActorCritic(), keras.optimizers.Nadam(0.01)
        huber = keras.losses.Huber(reduction="sum")

    def episode(state: Any) -> Any:
        chosen = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
        values = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
        for t in tf.range(5):
            logits, value = model(state[None])
            action = tf.argmax(logits[0], output_type=tf.int32)
            chosen = chosen.write(t, tf.nn.softmax(logits)[0, action])
            values = values.write(t, tf.squeeze(value))
            state = 0.9 * state + 0.1 * tf.cast(2 * action - 1, tf.float32)
            state.set_shape((4,))
        return chosen.stack(), values.stack()

    @tf.function
    def train_step(state: Any, returns: Any) -> Any:
        with tf.GradientTape() as tape:
            chosen, values = episode(state)
            advantage = returns - values
            loss = huber(values[:, None], returns[:, None])
            loss -= tf.reduce_sum(tf.math.log(chosen) * advantage)
        of = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    states, returns = reals(3, 4), reals(3, 5, seed=2)
    found = [
        float(train_step(*map(tf.constant, each))) for each in zip(states, returns, strict=True)
    ]
    return {"found": found, "weights": weights(model)}


@program(12)
def results_of_rows_reduced_and_gathered(strategy: Any) -> Numbers:
    """distribute_datasets_from_function with a shard, strategy.reduce along the rows, and gather"""
    x = reals(16, 5)

    def dataset_fn(context: Any) -> Any:
        rows = tf.data.Dataset.from_tensor_slices(x)
        rows = rows.shard(context.num_input_pipelines, context.input_pipeline_id)
        return rows.batch(context.get_per_replica_batch_size(16))

    with strategy.scope():
        model = classifier()

    @tf.function
    def reduced(batch: Any) -> Any:
        logits = strategy.run(model, args=(batch,))
        return [strategy.reduce(kind, logits, axis=0) for kind in ("MEAN", "sum")]

    @tf.function
    def logits_of(batch: Any) -> Any:
        return strategy.run(model, args=(batch,))

    found = [reduced(batch) for batch in strategy.distribute_datasets_from_function(dataset_fn)]
    data = tf.data.Dataset.from_tensor_slices(x[:14]).batch(8)
    data = strategy.experimental_distribute_dataset(data)
    mean = tf.distribute.ReduceOp.MEAN
    found.append([strategy.reduce(mean, logits_of(batch), axis=0) for batch in data])
    rows = [strategy.gather(logits_of(batch), axis=0) for batch in data]
    return {"found": found, "rows": rows}
