"""Dataset order: whether workers that read one `tf.data` pipeline get its rows in one order.

They take rows by position. A transformation with `deterministic=False` gives rows as they become
ready: in an order of its own on each worker, so that some rows would be trained on twice, and
others never. Options cannot change it, as they can `options.deterministic = False`
(`tfaccel.distribute.batch_iterator.in_order`).
"""

from __future__ import annotations

import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private
from tfaccel.distribute.own_rows_report import place
from tfaccel.errors import InputError


def check_order(dataset: tf.data.Dataset, alternative: str = "") -> None:
    """Refuses a dataset of which each worker would get the rows in an order of its own.

    Args:
        dataset: that every worker reads whole; without what is replaced before it is read.
        alternative: to write instead, for the error.

    Raises:
        InputError: a transformation in it has `deterministic=False`.
    """
    for each in _private.input_datasets(dataset):
        check_order(each, alternative)
    any_order = _private.has_any_order(dataset)
    if any_order is False:
        return
    found, function = _private.stage(dataset).kind, _private.user_function(dataset)
    what = found if function is None else f"{found} of {place(function)}"
    if any_order is None:
        logging.warning(
            "tfaccel: input: whether the %s has deterministic=False was not checked, since it "
            "reads too much from memory; with it, each worker would train on rows of an order of "
            "its own.",
            what,
        )
        return
    raise InputError(
        f"tfaccel: the {what} has deterministic=False, by which each worker gets the rows in an "
        "order of its own: some would be trained on twice, and others never; expected one order, "
        "of which each worker takes its rows; leave out deterministic=False (or sloppy=True)"
        f"{alternative}."
    )
