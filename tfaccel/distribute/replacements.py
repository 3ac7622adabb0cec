"""Replaces attributes for a while: for the time of a trace, of a step or of a call.

What Keras and TensorFlow have no option for is replaced while it is needed: a layer's `call`, a
method of a class, a function of a module, a flag of a thread. All of it goes through here, so that
it is put back in reverse order, also where an error ends the trace.

What lasts as long as an instance is the work of `mixins.py` instead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_ABSENT = object()


class Replacements(contextlib.ExitStack):
    """Several replacements; all are undone on exit, the last one first.

    An error while one is undone does not keep the others from being undone.

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

        What `owner` itself holds under that name is put back; where it is the class of `owner`, or
        nobody, that holds it, the attribute is deleted again. Keras's tracking of attributes is
        passed by: a replacement is not part of a layer.

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
    """What `owner` itself holds, or `_ABSENT`; of a class, also a descriptor as it is."""
    for cls in type(owner).__mro__:
        if name in vars(cls) and hasattr(type(vars(cls)[name]), "__set__"):  # a slot or property
            return getattr(owner, name, _ABSENT)
    return getattr(owner, "__dict__", {}).get(name, _ABSENT)


def _set(owner: Any, name: str, value: Any) -> None:
    # These two kinds have a way of their own to set attributes, which `object` does not know.
    own_way = isinstance(owner, (type, threading.local))
    if value is not _ABSENT:
        (setattr if own_way else object.__setattr__)(owner, name, value)
        return
    with contextlib.suppress(AttributeError):  # it was deleted meanwhile
        (delattr if own_way else object.__delattr__)(owner, name)
