"""The secret of a job: each worker holds it, and proves that without sending it.

`tfaccel launch` makes one for each attempt of a job and passes it to the workers in their
environment, which other users of a machine cannot read. When workers meet, each side sends a nonce
and the other answers with a code over that nonce and the message (HMAC, RFC 2104): a process that
listens at the address of another job's worker learns nothing from a connection, and cannot answer
it. Messages are not encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

VARIABLE = "TFACCEL_JOB_SECRET"
NONCE_BYTES = 32
_TAG_BYTES = hashlib.sha256().digest_size


def new() -> str:
    """A secret for a new job: 128 random bits, as letters and digits."""
    return secrets.token_hex(16)


def nonce() -> bytes:
    """A nonce."""
    return secrets.token_bytes(NONCE_BYTES)


def key(secret: str, job_id: str) -> bytes:
    """The key that the workers of a job share; empty where they have no secret.

    The job's id is part of it, and then need not be sent: an id may itself be hard to guess.
    """
    return hmac.digest(secret.encode(), job_id.encode(), "sha256") if secret else b""


def sign(key: bytes, challenge: bytes, content: bytes) -> bytes:
    """The content, prefixed with a code that only a holder of the key can make for this nonce.

    >>> verify(b"key", b"1", sign(b"key", b"1", b"hello"))
    b'hello'
    >>> verify(b"key", b"2", sign(b"key", b"1", b"hello")) is None
    True
    """
    return hmac.digest(key, challenge + content, "sha256") + content


def verify(key: bytes, challenge: bytes, message: bytes) -> bytes | None:
    """The content of a message; None when its sender lacks the key, or answers another nonce."""
    content = message[_TAG_BYTES:]
    whole = hmac.compare_digest(sign(key, challenge, content), message)
    return content if whole else None
