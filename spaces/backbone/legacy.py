"""Identities as version 0.1 wrote them, options at their defaults among the others: to find what it stored."""

from __future__ import annotations

from collections.abc import Mapping

from sparsearch.spaces.space import Space

__all__ = ["legacy_space_fingerprint"]

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "spectral": ("block", "max_blocks"),
    "lora": ("max_rank", "alpha"),
    "sparse_delta": ("smallest", "factor", "steps", "support", "scale"),
    "bitfit": (),
    "lnfit": (),
    "low_rank_adapter": ("reduction",),
    "adapter": ("bottleneck", "parallel"),
    "ia3": (),
    "heads": ("compensate",),
    "neurons": ("compensate", "block"),
    "weight_mask": (
        *("rank", "structured", "alpha_low_rank", "alpha_structured"),
        *("every", "pattern", "bands", "importance"),
    ),
}
"""Kind -> all options that it had in version 0.1."""


def legacy_space_fingerprint(space: Space) -> str | None:
    """The fingerprint that version 0.1 gave a space; None for one with a kind or an option that it had not."""
    kinds = {c.kind: space.kinds[c.kind] for c in space.candidates}
    if any(
        not kind.set_options.keys() <= {*_OPTIONS.get(name, ())} for name, kind in kinds.items()
    ):
        return None
    if not kinds.keys() <= _OPTIONS.keys():
        return None
    return space.fingerprint_with(
        {name: {o: getattr(kind, o) for o in _OPTIONS[name]} for name, kind in kinds.items()}
    )
