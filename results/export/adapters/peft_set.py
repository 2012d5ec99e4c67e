"""The ``peft-set`` format: a structure of several kinds as one PEFT adapter for each type, loaded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsearch.errors import ExportError
from sparsearch.results.export.peft import AdapterPlan, plan_adapter
from sparsearch.results.export.peft_folder import check_names, quiet, tried
from sparsearch.results.export.peft_model import fill, make_config, save_adapter
from sparsearch.results.export.peft_readme import loading_code
from sparsearch.results.export.task_config import TASK_CONFIG, write_task
from sparsearch.results.export.trained import Trained
from sparsearch.results.export.verify import check_padding, compare, logits_of
from sparsearch.spaces.attachment.weights_file import HEAD, values_of
from sparsearch.spaces.backbone.loading_lock import LOADING
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.families.position import find
from sparsearch.spaces.structure import Structure

__all__ = ["load_set", "write_peft_set"]

_ORDER = ("dora", "lora", "ia3")
"""DoRA reads what its linear gave, before a LoRA is added to that; IA3 rescales what all others gave."""
_OWN = {"dora": "dora", "ia3": "ia3"}
"""Kind -> the adapter that it needs for itself; all others share one of LoRA (or BEFT)."""

_README = """\
# A {name} as {count} PEFT adapters

Structure {hash} of {family}, written by sparsearch. Load the folders in this order, each onto the one before it;
together they compute what was trained. `set` is the path of this folder.

```python
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoConfig, {auto_model}{how_import}

config = AutoConfig.from_pretrained("set/{config}")
model = {auto_model}.from_pretrained({base}config=config, dtype="float32", ignore_mismatched_sizes=True)
names = {names}
for name in names:
    model.load_adapter(f"set/{{name}}", adapter_name=name)
for module in model.modules():
    if isinstance(module, BaseTunerLayer):
        module.set_adapter(names)
    elif isinstance(module, ModulesToSaveWrapper):
        module.set_adapter([*module.modules_to_save])
model.eval()
```

The loop stands for `model.set_adapter(names)` of transformers, which refuses several names where an adapter saves whole
modules (a head, norms); each later adapter would leave those as the base model has them. PEFT's `PeftModel` holds
adapters of one type alone.
"""


def write_peft_set(trained: Trained, folder: Path) -> tuple[tuple[str, ...], float]:
    """Write an adapter for each of PEFT's types that a structure needs, and prove them together.

    Args:
        trained: The structure with its weights.
        folder: Exists, and is empty.

    Returns:
        Notes for the user, and the largest difference of a logit.

    Raises:
        ExportError: If PEFT cannot express a part of it, or the adapters together give other logits.
    """
    import peft

    model = trained.attached_model()
    tensors, positions = values_of(model), positions_of(model)
    expected = logits_of(model)
    check_padding(expected)
    plans: dict[str, tuple[AdapterPlan, Structure]] = {}
    for name, part in _parts(trained.structure, positions).items():
        head = {} if plans else {n: t for n, t in tensors.items() if n.startswith(HEAD)}
        own = {n: t for n, t in tensors.items() if not n.startswith(HEAD)}
        plans[name] = plan_adapter(model, part, own | head), part
    if any(plan.parameters for plan, _ in plans.values()):
        raise ExportError(
            "transformers' load_adapter, by which such a set is loaded, loads no adapter of experts or routers",
            "export it with --to spec; what is LoRA alone goes with --to peft",
        )
    with quiet():
        for name, (plan, part) in plans.items():
            adapted = peft.get_peft_model(trained.fresh_model(), make_config(plan, part))
            check_names(adapted, plan)
            fill(adapted, plan)
            save_adapter(adapted, folder / name)
        notes = write_task(model.config, trained.structure.task_type, trained.processor, folder)
        text = _readme(trained, [*plans])
        (folder / "README.md").write_text(text, encoding="utf-8")
        step = "loaded together"
        found = tried(step, lambda: load_set(trained.fresh_model(), folder, [*plans]))
        difference = compare(expected, found, step)
    told = f"{len(plans)} adapters, to be loaded in this order: {', '.join(plans)}; README.md says how"
    return (told, *(n for plan, _ in plans.values() for n in plan.notes), *notes), difference


def load_set(model: Any, folder: Path, names: Sequence[str]) -> Any:
    """The adapters of a folder, all at work on a model.

    Args:
        model: A transformers model.
        folder: As ``write_peft_set`` filled it.
        names: Of the adapters, in their order.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    with LOADING:
        for name in names:
            model.load_adapter(str(folder / name), adapter_name=name)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(list(names))
        elif isinstance(
            module, ModulesToSaveWrapper
        ):  # one adapter saves it, a later one puts it out of use
            module.set_adapter([*module.modules_to_save])
    return model


def _parts(structure: Structure, positions: Sequence[Any]) -> dict[str, Structure]:
    """Name of an adapter -> its part of a structure, in the order in which they are loaded."""
    kinds = {c.base_kind for c in structure.candidates}
    norms = "dora" if "dora" in kinds and not kinds & {"lora", "spectral"} else "lora"
    of = {
        c: norms if find(positions, c.position).role == "norm" else _OWN.get(c.base_kind, "lora")
        for c in structure.candidates
    }
    parts = {}
    for name in _ORDER:
        if own := tuple(c for c in structure.candidates if of[c] == name):
            used = {c.kind for c in own}
            of_these = tuple(k for k in structure.kinds if k.name in used)
            parts[name] = replace(structure, candidates=own, kinds=of_these)
    if not parts:
        raise ExportError("the structure attaches nothing", "export it with --to checkpoint")
    return parts


def _readme(trained: Trained, names: list[str]) -> str:
    facts, structure = trained.facts, trained.structure
    code = loading_code(trained)
    return _README.format(
        name=facts.model_name,
        count=len(names),
        hash=structure.hash[:12],
        family=structure.backbone.family,
        auto_model=facts.auto_model,
        config=TASK_CONFIG,
        base=code.base,
        how_import=code.how_import,
        names=names,
    )
