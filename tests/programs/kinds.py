"""The kinds of programs: what each is, and what becomes of it under a strategy."""

# ruff: noqa: E501 - one text a line

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        title: a heading.
        what: what such programs do, and how it comes out.
        change: what to write instead where a row is refused; empty if nothing is.
    """

    title: str
    what: str
    change: str = ""


KINDS: dict[int, Kind] = {
    1: Kind(
        "Losses that are about the global batch",
        "Dice and Tversky, a function that returns one number for the batch, a mean over what a "
        'mask leaves, triplets and contrastive losses between rows, `reduction="none"`, losses '
        "that later steps turn on.",
    ),
    2: Kind(
        "`add_loss` of one value per row",
        "A layer that adds a vector or a column of losses, as CTC endpoints do: its sum over all "
        "rows of the batch.",
    ),
    3: Kind(
        "A `train_step` written for `tf.distribute`",
        "A loss divided by the global batch size or by `num_replicas_in_sync`, features that are "
        "gathered and sums that are reduced by hand.",
        "Write the loss as a mean over the rows that the step sees, as Keras does, or as a sum over the global batch size (`tf.nn.compute_average_loss(rows, global_batch_size=…)`), or as a mean divided by `num_replicas_in_sync`: the first-step check finds out which it is.",
    ),
    4: Kind(
        "Gradients handled inside a `train_step`",
        "Clipped, normed, centralized, accumulated, with respect to inputs, given to several "
        "optimizers.",
    ),
    5: Kind(
        "Rows of an `Embedding` that come up more than once",
        "Places of tokens, tied and shared tables, frequent words, under optimizers that are not "
        "linear in the gradient.",
    ),
    6: Kind(
        "State that layers and metrics keep",
        "Counters, maxima, moving sums, queues, a teacher's moving average, metrics that are not "
        "sums, and the state of several optimizers in a backup.",
        "Replicas run a step that itself assigns from its rows (a queue of the newest features) over all rows, unless it gathers them first: `tf.distribute.get_replica_context().all_gather(keys, axis=0)`.",
    ),
    7: Kind(
        "Seeds of single operations",
        "`shuffle(seed=3)` and the like without a global seed: one device's order on every worker.",
    ),
    8: Kind(
        "Parts of a batch with different numbers of rows",
        "Each part is split by its own rows.",
        "A part with several rows for each row of the others is split in proportion in every batch, "
        "if the first-step check finds one device's numbers; `evaluate` and `predict` alone, or "
        "with the check off, take it with another dimension (`[rows, 3, features]`). A script that "
        'shards its data itself leaves that out, or names it: `input="per_worker"`.',
    ),
    9: Kind(
        "Eager steps, graph networks, new axes, integer types",
        "`run_eagerly` with tensors kept on `self`, nodes moved to the first axis, `t[:, None]`, "
        "int64 beside int32.",
    ),
    10: Kind(
        "Models with a `train_step` and no `call`",
        "Autoencoders, GANs, distillation, siamese and contrastive models, and metrics whose "
        "variables are made in the first step.",
        "A `train_step` that compares the rows of a batch, or is written for the number of rows in it, is run by every replica over all rows, and a warning says so: one device's numbers, and its speed. So that replicas share the work, gather the features of all of them in the step (`tf.distribute.get_replica_context().all_gather`), or give the loss to `compile`, where it is gathered by itself.",
    ),
    11: Kind(
        "Parts created outside the scope",
        "Preprocessing layers, optimizers, metrics, loaded and whole models that were made before "
        "the scope are taken over by its strategy.",
    ),
    12: Kind(
        "Custom training loops",
        "As Keras's and TensorFlow's guides write them: eager, in a `tf.function`, with and "
        "without `strategy.run`, an epoch in one function, `train_on_batch`.",
        "On a mesh a loop without `strategy.run` computes on the host where it is eager, and on the "
        "mesh in a `tf.function` that is given its batches; one that reads its dataset itself runs "
        "as Python. A layer that makes tensors of its own needs a `tf.function` around "
        "`strategy.run` there.",
    ),
    13: Kind(
        "Strings",
        "Models that hold TextVectorization, StringLookup, IntegerLookup or Hashing.",
    ),
    14: Kind(
        "A last batch of fewer rows than replicas",
        "Through convolutions, attention, recurrent layers and fixed reshapes, in fit, evaluate "
        "and predict; and stateful recurrent layers.",
        "Stateful recurrent layers: `one_device`, or a mesh.",
    ),
    15: Kind(
        "Features on a mesh",
        "RMSprop, Adagrad and Adadelta with an Embedding, CTC, random layers, sparse input, "
        "lengths that differ, fused projections, rows compared with rows, grouped convolutions, "
        "shared losses.",
    ),
    16: Kind(
        "Around training",
        "Callbacks that read counters, rates and weights as numbers, caches and checkpoints in a "
        "directory of all workers.",
    ),
    17: Kind(
        "Operations that few models use",
        "Nearest codes, `argsort`, `gather_nd` and scatters, `boolean_mask`, gradients with respect "
        "to inputs, `tf.scan` and `TensorArray`, as public autoencoders, readers and critics have "
        "them.",
    ),
    18: Kind(
        "A `test_step` or `predict_step` of its own",
        "Rows that are compared in validation or prediction alone, and models that never train.",
        "Such a step is run by every replica over all rows, which a warning says; train steps of "
        "the same model are shared all the same.",
    ),
}
