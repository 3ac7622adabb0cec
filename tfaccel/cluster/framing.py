"""Framing of the rendezvous: a magic word, a length and that many bytes.

`multiprocessing.connection` does not fit: its `accept` and `recv_bytes` wait without a deadline for
a peer that connects and sends nothing, or half a frame, while rank 0 serves all ranks in one
selector, until a deadline, at a port that any program may reach. Its `send` and `recv` use pickle,
which must not be loaded from an untrusted peer; JSON after a magic word cannot run code.
"""

from __future__ import annotations

import json
import struct
from typing import Any

MAGIC = b"tfaccel2"
_HEADER = struct.Struct("!8sI")


class ProtocolError(Exception):
    """The other end does not use this protocol."""


def frame(body: bytes) -> bytes:
    """One frame."""
    return _HEADER.pack(MAGIC, len(body)) + body


def first_frame(received: bytearray, limit: int) -> bytes | None:
    """The body of the first frame, or None while it is incomplete.

    Raises:
        ProtocolError: this is not a frame, or one larger than `limit` bytes.

    >>> first_frame(bytearray(frame(b"hello") + b"more"), limit=100)
    b'hello'
    """
    if not received.startswith(MAGIC[: len(received)]):
        raise ProtocolError
    if len(received) < _HEADER.size:
        return None
    _, length = _HEADER.unpack_from(received)
    if length > limit:
        raise ProtocolError
    body = bytes(received[_HEADER.size : _HEADER.size + length])
    return body if len(body) == length else None


def as_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; an empty one when the body is not an object."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
