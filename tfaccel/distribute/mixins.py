"""Mixes a class into one instance; its original class, its name and its files are unchanged.

Keras 3 has no hook through which a strategy could reach an optimizer, a loss or a callback. Instead
of patching Keras, tfaccel makes the *instances* in question those of a subclass of their own class.
`isinstance` still holds, and `__class__` returns the original class: Keras writes the plain class
into a `.keras` file, which loads anywhere, even without tfaccel.
"""

from __future__ import annotations

from typing import Any

_made: dict[tuple[type, type], type] = {}


def mix_in(instance: Any, mixin: type) -> None:
    """Puts `mixin` before the class of `instance`. It is idempotent.

    Args:
        instance: any object whose class can be subclassed.
        mixin: a class that overrides some methods, calling `super()`.

    >>> class Loud:
    ...     def greet(self): return super().greet().upper()
    >>> class Greeter:
    ...     def greet(self): return "hello"
    >>> one, other = Greeter(), Greeter()
    >>> mix_in(one, Loud)
    >>> one.greet(), other.greet(), one.__class__ is Greeter
    ('HELLO', 'hello', True)
    """
    cls = type(instance)
    if issubclass(cls, mixin):
        return
    if (mixin, cls) not in _made:
        _made[mixin, cls] = _subclass(mixin, cls, plain=instance.__class__)
    object.__dict__["__class__"].__set__(instance, _made[mixin, cls])


def _subclass(mixin: type, cls: type, plain: type) -> type:
    subclass: Any

    def reduce_as_plain(self: Any, protocol: Any) -> Any:
        # A pickle names the plain class too, and loads as a plain instance.
        how, arguments, *rest = super(subclass, self).__reduce_ex__(protocol)
        if getattr(how, "__self__", None) is subclass:
            how = getattr(plain, how.__name__)
        return (how, tuple(plain if a is subclass else a for a in arguments), *rest)

    body = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__class__": property(lambda self: plain),
        "__reduce_ex__": reduce_as_plain,
    }
    subclass = type(cls.__name__, (mixin, cls), body)
    return subclass  # type: ignore[no-any-return]
