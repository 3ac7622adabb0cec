"""What of many workers' output is shown."""

from __future__ import annotations

import io
import threading
import time

import pytest

from tfaccel.errors import LaunchError
from tfaccel.launch.console import Console
from tfaccel.launch.output import Line, Terminal
from tfaccel.launch.show import shown_by
from tfaccel.launch.startup_messages import is_startup_message
from tfaccel.launch.warnings_filter import LogRecord, subject

OUT, ERR = 0, 1
PYTHON = ["train.py:8: UserWarning: a part is empty", "  warnings.warn('a part is empty')"]
THREAD = [
    "Exception in thread Thread-1:",
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in run',
    "ZeroDivisionError: division by zero",
]


def told(*lines: tuple[int, int, str], show: str = "chief") -> tuple[list[str], list[str]]:
    """What stdout and stderr show of these lines."""
    streams = io.StringIO(), io.StringIO()
    out, err = (Terminal(stream, terminal=False, colour=False) for stream in streams)
    console = Console(shown_by(show), out, err)
    for rank, stream, text in lines:
        console.show(rank, stream, Line(text))
    console.close()
    return streams[0].getvalue().splitlines(), streams[1].getvalue().splitlines()


def test_the_chief_is_shown_alone_and_as_it_is() -> None:
    said = [(rank, stream, f"line {stream}") for rank in range(3) for stream in (OUT, ERR)]
    assert told(*said) == (["line 0"], ["line 1"])


def test_several_have_their_ranks() -> None:
    said = [(rank, OUT, "one") for rank in range(3)]
    assert told(*said, show="0,2")[0] == ["[0] one", "[2] one"]
    assert told(*said, show="all")[0] == ["[0] one", "[1] one", "[2] one"]
    assert told(*said, show="2")[0] == ["one"]


def test_a_warning_of_the_others_is_shown_with_their_ranks_once() -> None:
    said = [(rank, ERR, text) for rank in (2, 1) for text in (*PYTHON, "Epoch 1/3", *PYTHON)]
    assert told(*said)[1] == [f"[1,2] {text}" for text in PYTHON]


@pytest.mark.parametrize("first", [0, 1])
def test_a_warning_that_the_chief_gives_too_is_given_once(first: int) -> None:
    form = "W1129 08:05:0{rank}.1 13988807065075{rank} own_rows.py:41] task:{rank} has all rows"
    lines = [
        line
        for rank in (first, 1 - first)
        for line in [(rank, ERR, form.format(rank=rank)), *((rank, ERR, text) for text in PYTHON)]
    ]
    assert told(*lines) == ([], [form.format(rank=0), *PYTHON])


def test_two_loggers_of_one_process_give_a_warning_once() -> None:
    one = (0, ERR, "WARNING:tensorflow:rows were dropped")
    other = (0, ERR, "W1129 08:05:04.064800 139888070650752 own_rows.py:44] rows were dropped")
    assert told(one, other)[1] == [one[2]]
    assert told(one, one)[1] == [one[2]] * 2, "the chief may say something twice"
    assert told(one, other, show="all")[1] == [f"[0] {one[2]}", f"[0] {other[2]}"]


def test_an_error_in_a_thread_is_shown_whole_and_a_fatal_one_is_not() -> None:
    """The launcher shows that of the worker that failed first."""
    assert told(*((1, ERR, text) for text in [*THREAD, "more"]))[1] == [f"[1] {x}" for x in THREAD]
    assert told(*((1, ERR, text) for text in [*PYTHON, *THREAD[1:]]))[1] == [
        f"[1] {text}" for text in PYTHON
    ]


def test_a_warning_waits_for_the_chief_only_for_a_while() -> None:
    stream = io.StringIO()
    err = Terminal(stream, terminal=False, colour=False)
    console = Console(shown_by("chief"), err, err, hold_s=0.2)
    console.show(1, ERR, Line(PYTHON[0]))
    assert not stream.getvalue()
    ends = time.monotonic() + 20
    while not stream.getvalue() and time.monotonic() < ends:
        time.sleep(0.01)
    assert stream.getvalue() == f"[1] {PYTHON[0]}\n"
    console.show(2, ERR, Line(PYTHON[0]))
    console.close()
    assert stream.getvalue() == f"[1] {PYTHON[0]}\n"
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.parametrize(
    "text",
    [
        "WARNING:tensorflow:a",
        "W0000 00:00:1795939443.3 8450 gpu_device.cc:2431] Cannot dlopen some GPU libraries",
        "2026-11-29 08:05:04.064800: E external/xla/x.cc:51] b",
        "2026-11-29 08:05:04,064 root ERROR c",
        "[train] CRITICAL: d",
        "Exception ignored in: <function f>",
        "tfaccel: worker 1 of 2 has exited or disconnected.",
        PYTHON[0],
    ],
)
def test_what_a_warning_is(text: str) -> None:
    assert subject(text)
    assert not is_startup_message(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Epoch 1/3",
        "I1129 08:05:04.064800 139888070650752 train.py:12] warned",
        "Traceback (most recent call last):",
        "loss: 0.3 - error: 0.1",
    ],
)
def test_what_no_warning_is(text: str) -> None:
    assert subject(text) is None
    assert not is_startup_message(text)


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795939443.312994    8450 port.cc:153] oneDNN custom operations are on.",
        "2024-11-29 08:05:04.064800: I tensorflow/core/util/port.cc:153] oneDNN custom operations",
        "2024-11-29 08:05:04.064800: I external/local_tsl/tsl/cuda/cudart_stub.cc:32] Could not "
        "find cuda drivers on your machine, GPU will not be used.",
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow "
        "with the appropriate compiler flags.",
        "E0000 00:00:1733000000.1    1 cuda_dnn.cc:8579] Unable to register cuDNN factory: "
        "Attempting to register factory for plugin cuDNN when one has already been registered",
        "2024-11-29 08:05:04.064800: W tensorflow/compiler/tf2tensorrt/utils/py_utils.cc:38] "
        "TF-TRT Warning: Could not find TensorRT",
        "E0000 00:00:1733000000.1    1 cuda_platform.cc:51] failed call to cuInit: INTERNAL: CUDA "
        "error: Failed call to cuInit: UNKNOWN ERROR (303)",
    ],
)
def test_what_tensorflow_always_says(text: str) -> None:
    assert is_startup_message(text)


def test_a_driver_that_fails_is_no_startup_message() -> None:
    assert not is_startup_message(
        "E0000 00:00:1733000000.1 1 cuda.cc:1] failed call to cuInit: error 802"
    )


def test_a_record_ends_where_something_else_begins() -> None:
    one = LogRecord(PYTHON[0])
    assert one.takes(PYTHON[1])
    assert not one.takes("Epoch 1/3")
    assert one.lines == PYTHON


@pytest.mark.parametrize("text", ["", "some", "0,", "-1", "0 1"])
def test_what_show_does_not_take(text: str) -> None:
    with pytest.raises(LaunchError, match="expected all, chief, or ranks such as 0,3"):
        shown_by(text)
