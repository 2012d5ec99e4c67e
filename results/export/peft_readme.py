"""The README.md of an exported PEFT adapter: what it is, how to load it, and what PEFT cannot do with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sparsearch.results.export.peft import AdapterPlan
from sparsearch.results.export.task_config import TASK_CONFIG, keywords_of
from sparsearch.results.export.trained import Trained
from sparsearch.spaces.backbone.folder import split_gguf
from sparsearch.spaces.backbone.inputs.readers import READERS

__all__ = ["LoadingCode", "loading_code", "readme"]

_LOADING = """\
The base model's folder does not know the task: {settings} in `{config}`. `{folder}` is the path of this folder.

```python
from peft import {auto_peft_model}, PeftModel
from transformers import AutoConfig, {auto_model}{how_import}

config = AutoConfig.from_pretrained("{folder}/{config}")
base = {auto_model}.from_pretrained(
    {base}config=config, dtype="float32", ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, "{folder}").eval()
```

{pipeline}\
{in_place}\
In one step:

```python
names = {names}
task = {{name: getattr(config, name) for name in names}}
model = {auto_peft_model}.from_pretrained(
    "{folder}", {how}**task, dtype="float32", ignore_mismatched_sizes=True
)
```
"""
_PIPELINE = """\
Give a pipeline this model: `pipeline("{name}", model=model, {processor}="{folder}")`. Given the folder
alone, transformers loads the base by its own config: its labels are not the task's.

"""
_LOADING_WITHOUT_HEAD = """\
`{config}` is the base model's config with the padding token of the training. `{folder}` is the path of this folder.

```python
from peft import {auto_peft_model}, PeftModel
from transformers import AutoConfig, {auto_model}, AutoTokenizer{how_import}

config = AutoConfig.from_pretrained("{folder}/{config}")
base = {auto_model}.from_pretrained({base}config=config, dtype="float32")
model = PeftModel.from_pretrained(base, "{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

In one step: `{auto_peft_model}.from_pretrained("{folder}", {how}pad_token_id=config.pad_token_id, dtype="float32")`.
{in_place}\
"""
_IN_PLACE = (
    '`base.load_adapter("{}")` of transformers does it in place; call `base.eval()` then.{}\n'
)
_GGUF = "gguf_file={}, quantization_config=GgufConfig(dequantize=True), "
_MERGED = """\
`model.merge_and_unload().save_pretrained("merged")` gives a plain transformers model of the same logits.
"""
_NOT_MERGED = """\
PEFT {version} cannot merge it: {reason}.{instead}
"""
_CHECKPOINT = " Export it with `--to checkpoint` for a merged model."


def readme(trained: Trained, plan: AdapterPlan, notes: Sequence[str], version: str) -> str:
    """The text, which names only what the export has tried.

    Args:
        trained: What was exported.
        plan: What the adapter consists of.
        notes: What a user should know beside that.
        version: Of PEFT.
    """
    from transformers.pipelines import SUPPORTED_TASKS

    structure, backbone, facts = trained.structure, trained.structure.backbone, trained.facts
    code = loading_code(trained)
    runs = facts.pipeline in SUPPORTED_TASKS
    head = (
        f", {len(plan.norms)} norms and the task's head"
        if plan.head
        else f" and {len(plan.norms)} norms"
    )
    experts = f", {len(plan.parameters)} tensors of experts and routers" if plan.parameters else ""
    header = {"base_model": backbone.path, "library_name": "peft", "pipeline_tag": facts.pipeline}
    lines = [
        *("---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""),
        f"# A {facts.model_name} as a PEFT adapter",
        "",
        f"Structure {structure.hash[:12]} of {backbone.family}, written by sparsearch with PEFT {version} as "
        f"{plan.method.upper()}: {len(plan.modules)} adapted linears{experts}{head}.",
        "",
        *_task(trained),
        "",
        "## Loading",
        "",
        (_LOADING if facts.has_head else _LOADING_WITHOUT_HEAD).format(
            config=TASK_CONFIG,
            settings=facts.settings,
            names=json.dumps(keywords_of(structure.task_type)).replace("[", "(").replace("]", ")"),
            auto_model=facts.auto_model,
            auto_peft_model=facts.auto_peft_model,
            pipeline=_PIPELINE.format(
                name=facts.pipeline, folder="adapter", processor=READERS[facts.reads].argument
            )
            if runs
            else "",
            in_place=""
            if plan.parameters
            else _IN_PLACE.format(
                "adapter", " It leaves the head trainable." if facts.has_head else ""
            ),
            folder="adapter",
            **code._asdict(),
        ),
        "## Merging",
        "",
        _NOT_MERGED.format(
            version=version,
            reason=plan.unmergeable,
            instead=_CHECKPOINT if backbone.quantisation is None else "",
        )
        if plan.unmergeable
        else _MERGED,
        "## What to know",
        "",
        *(f"- {note[0].upper()}{note[1:]}." for note in (*notes, *_limits(plan))),
    ]
    return "\n".join(lines) + "\n"


class LoadingCode(NamedTuple):
    """Code of a README that loads the base model; each part ends where the next argument begins.

    Attributes:
        base: The first arguments: where it lies, its revision, and ``how``.
        how: Keywords that load it from its file, or in its bits.
        how_import: What to import for them.
    """

    base: str
    how: str
    how_import: str


def loading_code(trained: Trained) -> LoadingCode:
    """How the base model of an adapter is loaded."""
    backbone, (place, gguf) = trained.structure.backbone, split_gguf(trained.base)
    how = how_import = ""
    if gguf:
        how, how_import = _GGUF.format(json.dumps(gguf)), ", GgufConfig"
    elif backbone.quantisation is not None:
        settings = ", ".join(f"{name}={value!r}" for name, value in backbone.quantisation.items())
        how = f"quantization_config=BitsAndBytesConfig({settings}), "
        how_import = ", BitsAndBytesConfig"
    revision = f"revision={json.dumps(backbone.revision)}, " if backbone.revision else ""
    return LoadingCode(f"{json.dumps(place)}, {revision}{how}", how, how_import)


def _task(trained: Trained) -> Iterator[str]:
    if not trained.classes:
        yield f"It gives {trained.facts.output}."
        return
    yield "Labels, in the order of the logits:"
    yield ""
    yield from (
        f"{number}. {json.dumps(name, ensure_ascii=False)}"
        for number, name in enumerate(trained.classes)
    )


def _limits(plan: AdapterPlan) -> Iterator[str]:
    """What PEFT does otherwise than one would guess, where it touches this adapter."""
    if plan.head:
        yield (
            "Merging by name, `merge_and_unload(adapter_names=[...])`, keeps the head of the *active* adapter: "
            "call `set_adapter` first"
        )
    if plan.head and plan.method != "beft":
        yield "`add_weighted_adapter` refuses adapters that save the same head, as this one does"
    if plan.low_rank:
        fails = "fails on adapters with a head and " if plan.head else ""
        yield (
            f"`hotswap_adapter` {fails}forgets ranks that differ between modules: "
            "load a fresh model instead"
        )
    if plan.parameters:
        yield "Loading it warns that patterns of `rank_pattern` for experts were ignored; they are used all the same"
    if plan.method == "lora" and plan.with_bias:
        yield "Saving or loading it warns of `lora_bias`; the biases are right all the same"
    yield (
        "On a base with `torch.nn.utils.prune` masks or parametrizations, `merge_and_unload` leaves the adapter "
        "out without an error: make them permanent first"
    )
