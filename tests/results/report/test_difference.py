"""What two structures choose differently."""

from __future__ import annotations

import pytest

from sparsearch.results.report.difference import compare_structures
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure


@pytest.mark.parametrize(
    ("kind", "one", "other", "options"),
    [
        (
            "lora",
            {"max_rank": 1, "alpha": 16},
            {"max_rank": 1, "alpha": 64},
            {"alpha": [None, 64]},
        ),
        ("adapter", {}, {"parallel": True}, {"parallel": [None, True]}),
        (
            "heads",
            {"compensate": "none"},
            {"compensate": "linear"},
            {"compensate": [None, "linear"]},
        ),
    ],
)
def test_options_that_differ_are_a_difference(build, kind, one, other, options):
    model = build("bert")

    def structure_with(settings):
        space = build_space(model, kinds={kind: settings})
        return make_structure(space, space.candidates[:2], identify(model), "classification")

    first, second = structure_with(one), structure_with(other)
    assert compare_structures(first, first).changes == ()
    difference = compare_structures(first, second)
    assert difference.same == 0 and len(difference.changes) == len(first.candidates)
    assert all(c["options"] == options for c in difference.as_dict()["changes"])
