"""Every kind with options that suit a tiny model, and where a kind can go."""

from __future__ import annotations

from sparsearch.spaces.backbone.parameters import positions_of

TABLE = [
    ("lora", {"max_rank": 3}),
    ("dora", {"rank": 2}),
    ("spectral", {"block": 2, "max_blocks": 3}),
    ("lora_xs", {"smallest": 2, "factor": 2, "steps": 2}),
    ("vera", {"rank": 5}),
    ("bitfit", {}),
    ("lnfit", {}),
    ("low_rank_adapter", {"reduction": 8}),
    ("adapter", {"bottleneck": 3}),
    ("adapter", {"bottleneck": 3, "parallel": True}),
    ("compacter", {"bottleneck": 3, "division": 2}),
    ("ia3", {}),
    ("prefix", {"max_length": 3}),
    ("sparse_delta", {"smallest": 4, "factor": 3, "steps": 3}),
    ("weight_mask", {"rank": 2, "bands": 4}),
]


def units_of(model, kind):
    """The kind everywhere it can go: (position, kind, size, gates)."""
    return [
        (p, kind, sum(kind.sizes(p)), len(kind.sizes(p)))
        for p in positions_of(model)
        if kind.accepts(p)
    ]
