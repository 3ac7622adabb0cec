"""The secret of a job: what each of its workers holds, and shows without saying it.

`tfaccel launch` makes one for each try of a job and gives it to the workers by environment, which
other users of a machine cannot read. When workers meet, each side sends a number used once and
the other answers with a code over that number and the message (HMAC, RFC 2104): who listens
at the address of another job's worker learns nothing from a call, and can answer nothing.
Messages are not encrypted.
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
    """A number used once."""
    return secrets.token_bytes(NONCE_BYTES)


def key(secret: str, job_id: str) -> bytes:
    """What the workers of a job have in common; empty where they have no secret.

    The job's id is part of it, and need not be said then: an id may itself be hard to guess.
    """
    return hmac.digest(secret.encode(), job_id.encode(), "sha256") if secret else b""


def sign(key: bytes, challenge: bytes, content: bytes) -> bytes:
    """The content, after a code that only a holder of the key can make, and for this number only.

    >>> verify(b"key", b"1", sign(b"key", b"1", b"hello"))
    b'hello'
    >>> verify(b"key", b"2", sign(b"key", b"1", b"hello")) is None
    True
    """
    return hmac.digest(key, challenge + content, "sha256") + content


def verify(key: bytes, challenge: bytes, message: bytes) -> bytes | None:
    """The content of a message; None when its maker does not hold the key, or answers another."""
    content = message[_TAG_BYTES:]
    whole = hmac.compare_digest(sign(key, challenge, content), message)
    return content if whole else None
