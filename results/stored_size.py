"""What a task costs to keep, beside what it trains."""

from __future__ import annotations

from sparsearch.spaces.candidate import BYTES_PER_PARAM

__all__ = ["is_swollen", "swollen_text", "untrained_bytes"]

_MOST = 10
"""Times the trained values, above which a stored size is worth a warning."""


def untrained_bytes(stored_bytes: float, trainable_params: float) -> float:
    """Bytes that are stored beside the trained values: directions, indices, masks, and the choice of candidates."""
    return stored_bytes - BYTES_PER_PARAM * trainable_params


def is_swollen(stored_bytes: float, trainable_params: float) -> bool:
    """Whether far more is stored than trains: trained parameters then do not tell what a task costs.

    >>> is_swollen(3_253_117, 2_256), is_swollen(9_085, 2_256)
    (True, False)
    """
    return 0 < _MOST * BYTES_PER_PARAM * trainable_params < stored_bytes


def swollen_text(stored_bytes: float, trainable_params: float) -> str:
    """That, in words.

    >>> what, advice = swollen_text(3_253_117, 2_256).split(": ")
    >>> what
    '3,253,117 stored bytes are 360 times the 9,024 of its trained parameters'
    >>> advice
    'set max_bytes where they count (a ticket stores all that is left, and takes no such limit)'
    """
    trained = BYTES_PER_PARAM * trainable_params
    return (
        f"{stored_bytes:,.0f} stored bytes are {stored_bytes / trained:,.0f} times the {trained:,.0f} of its trained "
        "parameters: set max_bytes where they count (a ticket stores all that is left, and takes no such limit)"
    )
