"""The walk over the calls that led to a function."""

from __future__ import annotations

import inspect
import itertools

from tfaccel.distribute.call_stack import Call, calls


def asks(above: int = 0) -> list[str]:
    return [call.function for call in itertools.islice(calls(above), 2)]


def inner(above: int = 0) -> list[str]:
    return asks(above)


def outer(above: int = 0) -> list[str]:
    return inner(above)


def test_the_innermost_call_is_first() -> None:
    assert outer() == ["inner", "outer"]


def test_calls_are_left_out() -> None:
    assert outer(1) == ["outer", "test_calls_are_left_out"]


def test_it_begins_at_its_creator_wherever_it_is_read() -> None:
    def read() -> Call:
        found = calls()
        return next(call for call in found if call.function != "read")

    assert read().function == "test_it_begins_at_its_creator_wherever_it_is_read"


def test_it_ends_with_the_program() -> None:
    outside = inspect.stack()[1:]
    assert [call.function for call in calls()] == [frame.function for frame in outside]


def test_a_call_knows_its_module_and_its_variables() -> None:
    def asks(argument: int) -> Call:
        held = argument + 1
        assert held == 4
        return next(read())

    def read():
        return calls()

    call = asks(3)
    assert (call.function, call.module) == ("asks", __name__)
    assert (call.local("argument"), call.local("held"), call.local("absent")) == (3, 4, None)


def test_a_package_is_no_other_that_begins_alike() -> None:
    def asks() -> Call:
        return next(read())

    def read():
        return calls()

    package, _, name = __name__.rpartition(".")
    assert asks().is_of(package)
    assert not asks().is_of(package[:-1])
    assert not asks().is_of(__name__), f"{name} is inside its package, not inside itself"
