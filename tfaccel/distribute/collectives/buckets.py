"""Which tensors are sent together."""

from __future__ import annotations

from collections.abc import Sequence


def plan(sizes: Sequence[int], kinds: Sequence[object], limit: int) -> list[list[int]]:
    """Packs tensors into messages, in order.

    A tensor of `limit` bytes or more is sent alone, without a copy. Gradients come in layer order
    and are ready in the opposite one, so it begins with the last.

    Args:
        sizes: bytes of each tensor.
        kinds: the dtype of each; a message holds one kind.
        limit: bytes of a message of several tensors.

    Returns:
        The indices in each message.

    >>> plan([4, 4, 100, 4], ["f", "f", "f", "f"], limit=50)
    [[3], [2], [1, 0]]
    """
    messages: list[list[int]] = []
    filled = limit
    for i in reversed(range(len(sizes))):
        fits = bool(messages) and filled + sizes[i] <= limit
        if not fits or sizes[i] >= limit or kinds[i] != kinds[messages[-1][-1]]:
            messages.append([])
            filled = 0
        messages[-1].append(i)
        filled = filled + sizes[i] if sizes[i] < limit else limit
    return messages
