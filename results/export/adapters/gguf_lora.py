"""The ``gguf-lora`` format: LoRA in a GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it.

``general.type`` is ``adapter``, ``adapter.type`` is ``lora``. A linear W (out, in) has ``W.lora_a`` (rank, in) and
``W.lora_b`` (out, rank); llama.cpp adds alpha / rank times B A x.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsearch.errors import ExportError
from sparsearch.results.export.peft import AdapterPlan, plan_adapter
from sparsearch.results.export.task_config import TASK_CONFIG, write_task
from sparsearch.results.export.trained import Trained
from sparsearch.results.export.verify import check_padding, compare, logits_of
from sparsearch.spaces.attachment.weights_file import values_of
from sparsearch.spaces.families.gguf import GGUF, GgufNames

__all__ = ["FILE", "read_adapter", "write_gguf_lora"]

FILE = "adapter.gguf"
_ALPHA, _KIND = "adapter.lora.alpha", "adapter.type"
_INSTEAD = "export it with --to peft or --to checkpoint"


def write_gguf_lora(trained: Trained, folder: Path) -> tuple[tuple[str, ...], float]:
    """Write the adapter, and prove it: read the file, add it to the weights of a fresh model, compare the logits.

    Args:
        trained: The structure with its weights.
        folder: Exists, and is empty.

    Returns:
        Notes for the user, and the largest difference of a logit.

    Raises:
        ExportError: If the package ``gguf`` is missing, llama.cpp cannot hold the structure, or the logits differ.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ExportError(
            "GGUF files need gguf, not installed here", "pip install 'sparsearch[gguf]'"
        )
    names = _check(trained)
    model = trained.attached_model()
    plan = plan_adapter(model, trained.structure, values_of(model))
    expected = logits_of(model)
    check_padding(expected)
    _write(folder / FILE, plan, names, model)
    notes = write_task(model.config, trained.structure.task_type, trained.processor, folder)
    again = trained.fresh_model()
    _add(again, folder / FILE, names)
    difference = compare(expected, logits_of(again), "read again and added to the weights")
    told = f"llama-cli -m BASE.gguf --lora {FILE}: BASE.gguf must be the same base model"
    return (told, f"{TASK_CONFIG} holds the settings of the task", *notes), difference


def _check(trained: Trained) -> GgufNames:
    """The family in GGUF files, if they can hold the structure."""
    structure = trained.structure
    family = structure.backbone.family
    problem = ""
    if trained.facts.has_head:
        problem = "llama.cpp runs language models; this one has a trained head"
    elif family not in GGUF:
        problem = f"family {family!r}: GGUF LoRA is written for {', '.join(GGUF)}"
    elif others := sorted({c.base_kind for c in structure.candidates} - {"lora", "spectral"}):
        problem = f"a GGUF adapter holds LoRA alone, and the structure has {', '.join(others)}"
    if problem:
        raise ExportError(problem, _INSTEAD)
    return GGUF[family]


def _write(file: Path, plan: AdapterPlan, names: GgufNames, model: Any) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, names.architecture)
    writer.add_type("adapter")
    writer.add_string(_KIND, "lora")
    alpha = float(max(m.rank for m in plan.modules))
    writer.add_float32(_ALPHA, alpha)
    known = _tensor_names(names, model)
    for module in plan.modules:
        assert module.A is not None and module.B is not None, "a GGUF adapter holds LoRA alone"
        if module.path not in known:
            raise ExportError(
                f"GGUF files of {names.architecture} have no {module.path}", _INSTEAD
            )
        name = known[module.path]
        up = module.B * (plan.scale * module.rank / alpha)
        up = _permuted(up, _heads_of(name, names, model.config))
        writer.add_tensor(f"{name}.lora_a", module.A.float().contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", up.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_names(names: GgufNames, model: Any) -> dict[str, str]:
    """Path of a linear -> the name of its weight in GGUF files, where they have it."""
    import gguf

    found = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[names.architecture]
    table = gguf.get_tensor_name_map(found, model.config.num_hidden_layers)
    linears = (path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    known = {path: table.get_name(f"{path}.weight", (".weight",)) for path in linears}
    return {path: name for path, name in known.items() if name is not None}


def _heads_of(name: str, names: GgufNames, config: Any) -> int:
    """Heads whose rows are permuted in a tensor; 0 where rows stay as they are."""
    if not names.permuted:
        return 0
    counts = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return int(counts.get(name.split(".")[-2], 0))


def _permuted(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head with its two halves in turns; with no heads as they are."""
    if not heads:
        return rows
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _unpermuted(rows: Tensor, heads: int) -> Tensor:
    """What ``_permuted`` was given."""
    if not heads:
        return rows
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def read_adapter(file: Path) -> dict[str, Tensor]:
    """Name of a weight in GGUF files -> what the adapter adds to it there, (out, in).

    Args:
        file: A LoRA adapter in a GGUF file.

    Raises:
        ExportError: If it is none.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    fields = reader.fields
    if _KIND not in fields or fields[_KIND].contents() != "lora":
        raise ExportError(f"{file} is no LoRA adapter")
    alpha = float(fields[_ALPHA].contents())
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    changes = {}
    for name, down in tensors.items():
        if name.endswith(".lora_a"):
            weight = name.removesuffix(".lora_a")
            changes[weight] = (alpha / len(down)) * tensors[f"{weight}.lora_b"] @ down
    return changes


@torch.no_grad()
def _add(model: Any, file: Path, names: GgufNames) -> None:
    """Add an adapter to the weights of a model."""
    changes = read_adapter(file)
    for path, name in _tensor_names(names, model).items():
        if name in changes:
            change = _unpermuted(changes.pop(name), _heads_of(name, names, model.config))
            model.get_submodule(path).weight += change
    if changes:
        raise ExportError(f"the model has no {', '.join([*changes][:3])}")
