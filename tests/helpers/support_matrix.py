"""The support matrix: what each kind can do in each family, as ``docs/support.md`` shows it.

``python -m tests.helpers.support_matrix`` writes the page anew.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from sparsearch.errors import ExportError, StructureError
from sparsearch.results.export.peft import plan_adapter
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.weights_file import weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.families.position import matching
from sparsearch.spaces.families.registry import FAMILIES
from sparsearch.spaces.kinds import KINDS, Kind, make_kind
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import HEADLESS, make_model
from tests.helpers.families import CONFIGS, VARIANTS
from tests.helpers.kind_table import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
OPTIONS = {**dict(reversed(TABLE)), "heads": {}, "neurons": {"block": 32}}
NONE = "–"

LEGEND = """\
# What works where

Each kind in each family, tried on a tiny random model of it.
`python -m tests.helpers.support_matrix` writes this page; a test compares it with the code.

| mark | means |
|---|---|
| A | it attaches without a change of the output, its gates have gradients, it is saved, loaded and taken off again |
| P | it exports to PEFT, wherever it can go; p: but not on norms |
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
    return {name: marks(model, make_kind(name, OPTIONS[name])) for name in KINDS}


def marks(model: nn.Module, kind: Kind) -> str:
    """What a kind can do in a model: in its last layer, and outside the layers."""
    positions = positions_of(model)
    last = max(p.layer or 0 for p in positions)
    places = [p for p in positions if p.layer in (None, last) and kind.accepts(p)]
    if not places:
        return NONE
    everywhere = [p.name for p in places]
    linears = [p.name for p in places if p.role != "norm"]
    found = ["A"]
    if not kind.not_in_peft and model.config.model_type not in HEADLESS:
        found += first_of(("P", everywhere), ("p", linears), works=partial(exports, model, kind))
    if kind.role == "remove":
        found.append("C")
    elif kind.mergeable:
        found += first_of(("M", everywhere), ("m", linears), works=partial(merges, model, kind))
    return " ".join(found)


def first_of(*marked: tuple[str, list[str]], works: Callable[[list[str]], bool]) -> list[str]:
    """The first mark whose patterns work, if one does."""
    return [mark for mark, on in marked if on and works(on)][:1]


def exports(model: nn.Module, kind: Kind, on: list[str]) -> bool:
    """Whether PEFT can express the kind at these positions."""
    space = build_space(model, kinds={kind.name: {**OPTIONS[kind.name], "on": on}})
    structure = make_structure(space, space.candidates, identify(model), "classification")
    attach(model, structure)
    tensors = weights_of(model)
    detach(model)
    try:
        plan_adapter(model, structure, tensors)
    except ExportError:
        return False
    return True


def merges(model: nn.Module, kind: Kind, on: list[str]) -> bool:
    """Whether the kind folds into the weights at these positions."""
    whole = copy.deepcopy(model)
    places = [p for p in matching(positions_of(whole), on) if kind.accepts(p)]
    attach_modules(whole, [(p, kind, 1, 1) for p in places], train_head=False)
    try:
        merge(whole)
    except StructureError:
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
        *(
            f"| exports of {name} | transformers has no sequence classifier for it |"
            for name in HEADLESS
        ),
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(page(), encoding="utf-8")
