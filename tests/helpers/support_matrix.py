"""The support matrix: what each kind can do in each family, as ``docs/support.md`` shows it.

``python -m tests.helpers.support_matrix`` writes the page anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from sparsearch.errors import ExportError, StructureError
from sparsearch.results.export.peft import plan_adapter
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.weights_file import values_of
from sparsearch.spaces.backbone.identity import BackboneId, identify
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.families.position import Position
from sparsearch.spaces.families.registry import FAMILIES
from sparsearch.spaces.kinds import KINDS, Kind, make_kind
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_model
from tests.helpers.families import CONFIGS, VARIANTS, task_of
from tests.helpers.kind_table import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
OPTIONS = {**dict(reversed(TABLE)), "heads": {}, "neurons": {"block": 32}}
NONE = "–"

Places = list[tuple[Position, Kind]]

LEGEND = """\
# What works where

Each kind in each family, tried on a tiny random model of it.
`python -m tests.helpers.support_matrix` writes this page; a test compares it with the code.

| mark | means |
|---|---|
| A | it attaches without a change of the output, its gates have gradients, it is saved, loaded and taken off again |
| P | it exports to PEFT, wherever it can go; p: but not on norms, nor on linears of shared experts |
| M | `merge` folds it into the weights, wherever it can go; m: but not into norms |
| C | `slim` and `cut_units` take it out of the weights |
| – | it has no place in this family: [why](#why-something-is-missing) |

What a mark claims is computed and compared in `tests/spaces` (`families/test_conformance.py` has the families beside
the core), and for PEFT in `tests/results/export/test_export_conformance.py` too.

"""


def page() -> str:
    """The whole page."""
    columns = ["family", *KINDS]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for variant in sorted(CONFIGS):
        lines.append(f"| {variant} | {' | '.join(row(variant).values())} |")
    return LEGEND + "\n".join([*lines, "", *reasons()]) + "\n"


def row(variant: str) -> dict[str, str]:
    """Kind -> marks, in one family."""
    model = make_model(variant)
    backbone = identify(model)
    kinds = [make_kind(name, OPTIONS[name]) for name in KINDS]
    found = {kind.name: marks(model, kind, backbone, task_of(variant)) for kind in kinds}
    for kind in kinds:  # last: the model is another one afterwards
        if found[kind.name] and kind.mergeable:
            found[kind.name] += first_of("M", "m", places_of(model, kind), partial(merges, model))
    return {name: " ".join(given) or NONE for name, given in found.items()}


def marks(model: nn.Module, kind: Kind, backbone: BackboneId, task: str) -> list[str]:
    """What a kind can do in a model, but for merging; nothing where it has no place."""
    places = places_of(model, kind)
    found = ["A"] if places else []
    if places and not kind.not_in_peft:
        found += first_of("P", "p", places, partial(exports, model, backbone, task))
    return [*found, "C"] if places and kind.role == "remove" else found


def places_of(model: nn.Module, kind: Kind) -> Places:
    """Where a kind can go in the last layer, and outside the layers."""
    positions = positions_of(model)
    last = max(p.layer or 0 for p in positions)
    return [(p, kind) for p in positions if p.layer in (None, last) and kind.accepts(p)]


def first_of(
    everywhere: str, linears: str, places: Places, works: Callable[[Places], bool]
) -> list[str]:
    """The first of both marks that is true: of all places, or of those that are linears, blocks or what is cut."""
    rest = [
        (p, kind)
        for p, kind in places
        if p.role != "norm" and not p.in_weight and ".shared." not in p.name
    ]
    given = ((everywhere, places), (linears, rest))
    return [mark for mark, some in given if some and works(some)][:1]


def exports(model: nn.Module, backbone: BackboneId, task: str, places: Places) -> bool:
    """Whether PEFT can express the kind at these places."""
    (kind,) = {kind for _, kind in places}
    on = [p.name for p, _ in places]
    space = build_space(model, kinds={kind.name: {**OPTIONS[kind.name], "on": on}})
    structure = make_structure(space, space.candidates, backbone, task)
    attach(model, structure)
    tensors = values_of(model)
    detach(model)
    try:
        plan_adapter(model, structure, tensors)
    except ExportError:
        return False
    return True


def merges(model: nn.Module, places: Places) -> bool:
    """Whether the kind folds into the weights at these places."""
    attach_modules(model, [(p, kind, 1, 1) for p, kind in places], train_head=False)
    try:
        merge(model)
    except StructureError:
        detach(model)
        return False
    return True


def reasons() -> list[str]:
    """Why there are holes: of families, of PEFT, and of merging."""
    lines = ["## Why something is missing", "", "| where | reason |", "|---|---|"]
    for variant in sorted(CONFIGS):
        family = VARIANTS[variant][0] if variant in VARIANTS else variant
        lines += [
            f"| `{role}` in {variant} | {why} |" for role, why in FAMILIES[family].lacks.items()
        ]
    for name in KINDS:
        kind = make_kind(name, OPTIONS[name])
        if kind.not_in_peft:
            lines.append(f"| `{name}` in PEFT | {kind.not_in_peft} |")
        if not kind.mergeable and kind.role == "attach":
            lines.append(f"| `{name}` merged | it computes between linears, and stays attached |")
    return [
        *lines,
        "| `bitfit` on norms in PEFT, or merged | only a norm that has a bias can take one |",
        "| `bitfit`, `ia3` on experts and routers | what these put out stays inside their module, where nothing can be "
        "added to it; kinds that change the weight alone go there |",
        "| `weight_mask` on routers | they are small, and choose the experts |",
        "| `lora`, `spectral` on shared experts in PEFT | PEFT 0.21 takes linears of such names for the experts |",
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(page(), encoding="utf-8")
