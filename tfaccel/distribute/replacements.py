"""Replaces attributes temporarily: during a trace, a step or a call.

Where Keras and TensorFlow have no option, an attribute is replaced while needed: a layer's `call`,
a method of a class, a function of a module, a flag of a thread. All of them go through here, so
that they are restored in reverse order, even after an error in the trace.

Changes for the lifetime of an instance belong to `mixins.py`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_ABSENT = object()


class Replacements(contextlib.ExitStack):
    """Several replacements; all are undone on exit, the last one first.

    An error while one is undone does not prevent undoing the others.

    >>> class Greeter:
    ...     def greet(self): return "hello"
    >>> greeter = Greeter()
    >>> with Replacements() as replacements:
    ...     replacements.replace(greeter, "greet", lambda: "good morning")
    ...     greeter.greet()
    'good morning'
    >>> greeter.greet(), vars(greeter)
    ('hello', {})
    """

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute until exit.

        A value that `owner` itself holds under that name is restored; if only its class holds it,
        or nothing does, the attribute is deleted again. Keras's attribute tracking is bypassed: a
        replacement is not part of a layer.

        Args:
            owner: an instance, a class, a module, or the state of a thread.
            name: of the attribute; it may be a slot, or a property that can be set.
            value: what it is meanwhile.

        Raises:
            AttributeError: when `owner` has no such attribute that can be set; nothing is replaced.
        """
        before = _held(owner, name)
        _set(owner, name, value)
        self.callback(_set, owner, name, before)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces one attribute inside, as `Replacements.replace` does.

    >>> class Switch:
    ...     on = False
    >>> switch = Switch()
    >>> with replaced(switch, "on", True):
    ...     switch.on
    True
    >>> switch.on
    False
    """
    with Replacements() as replacements:
        replacements.replace(owner, name, value)
        yield


def _held(owner: Any, name: str) -> Any:
    """The value that `owner` itself holds, or `_ABSENT`; for a class, also a raw descriptor."""
    for cls in type(owner).__mro__:
        if name in vars(cls) and hasattr(type(vars(cls)[name]), "__set__"):  # a slot or property
            return getattr(owner, name, _ABSENT)
    return getattr(owner, "__dict__", {}).get(name, _ABSENT)


def _set(owner: Any, name: str, value: Any) -> None:
    # These two kinds set attributes in their own way, which `object` does not support.
    own_way = isinstance(owner, (type, threading.local))
    if value is not _ABSENT:
        (setattr if own_way else object.__setattr__)(owner, name, value)
        return
    with contextlib.suppress(AttributeError):  # it was deleted meanwhile
        (delattr if own_way else object.__delattr__)(owner, name)
