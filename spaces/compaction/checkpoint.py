"""Checkpoints: a slim model as a folder of safetensors and JSON that needs no backbone to load.

``config.json`` is the backbone's, ``checkpoint.json`` what was changed: units cut, biases added, modules
attached. Loading replays that on an empty model, then fills it from ``model.safetensors``.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsearch.config.tasks.types import facts_of
from sparsearch.errors import BackboneError, StructureError
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify, same_weights
from sparsearch.spaces.backbone.loading import auto_class, load_config
from sparsearch.spaces.backbone.loading_lock import LOADING
from sparsearch.spaces.backbone.parameters import count_params, head_parameters, positions_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.compaction.compact import units_removed
from sparsearch.spaces.compaction.remove import remove_units
from sparsearch.spaces.compaction.sparsity import weight_sparsity
from sparsearch.spaces.families.position import Position, find
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from sparsearch.spaces.compaction.checkpoint_document import (
    DOCUMENT,
    EXPORT_HINT,
    SCHEMA_VERSION,
    Checkpoint,
    Costs,
    checkpoint_json,
    read_checkpoint,
)

__all__ = [
    "load_checkpoint",
    "save_checkpoint",
    "verify_checkpoint",
]

WEIGHTS, GENERATION = "model.safetensors", "generation_config.json"


def save_checkpoint(
    model: PreTrainedModel,
    structure: Structure,
    folder: str | Path,
    *,
    inference_flops_ratio: float | None = None,
    tokenizer: Any = None,
) -> Checkpoint:
    """Write a slim model to a folder.

    Args:
        model: What ``compact`` made of the model with the structure attached.
        structure: That structure.
        folder: Exists; files of these names in it are overwritten.
        inference_flops_ratio: Of the structure, if known.
        tokenizer: Or image processor; stored with the model, if given.

    Raises:
        ModelStateError: If the model is in a state where its weights cannot be written, see ``model_state``.

    Example:
        >>> save_checkpoint(compact(model, structure), structure, "small/")  # doctest: +SKIP
    """
    check_state(model, allow={"attached"})
    folder = Path(folder)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(folder)
    if model.can_generate():  # chat models say there at which token an answer ends
        model.generation_config.to_json_file(folder / GENERATION)
    files = () if tokenizer is None else tokenizer.save_pretrained(folder)
    tensors = {n: t.detach().cpu().contiguous() for n, t in _own_tensors(model).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone

    whole = _empty(folder, structure.task_type, "meta")
    cut = units_removed(structure, positions_of(whole))
    names = {name for name, _ in whole.named_parameters(remove_duplicate=False)}
    biases = [n for n, _ in _of_model(model) if n not in names]
    attachment = attachment_of(model)
    checkpoint = Checkpoint(
        schema_version=SCHEMA_VERSION,
        structure=json.loads(structure.to_json()),
        kept={name: _rest(find(positions_of(whole), name), units) for name, units in cut.items()},
        added_biases=tuple(biases),
        plain=not (cut or biases or attachment),
        sha256=_sha256(folder / WEIGHTS),
        weight_fingerprint=identify(model).weight_fingerprint,
        costs=Costs(
            backbone_params=structure.backbone.params,
            slim_params=count_params(model),
            attached_params=sum(p.numel() for p in attachment.parameters()) if attachment else 0,
            head_params=sum(p.numel() for _, p in head_parameters(model)),
            inference_flops_ratio=inference_flops_ratio,
            weight_sparsity=weight_sparsity(model),
        ),
        tokenizer=tuple(sorted(Path(file).name for file in files if Path(file).is_file())),
    )
    (folder / DOCUMENT).write_text(checkpoint_json(checkpoint), encoding="utf-8")
    return checkpoint


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The slim model of a folder that ``export --to checkpoint`` wrote, in evaluation mode.

    Only JSON and safetensors of this folder are read, and no code in it runs.

    Args:
        folder: With ``checkpoint.json``, ``config.json`` and ``model.safetensors``.
        device: Where the model goes.

    Raises:
        StructureError: If a file is missing, malformed or damaged, or they do not belong together.

    Example:
        >>> model = load_checkpoint("small/")                        # doctest: +SKIP
    """
    from transformers import GenerationConfig

    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    structure = Structure.from_json(json.dumps(checkpoint.structure))
    tensors = _read_weights(folder, checkpoint.sha256)
    with torch.random.fork_rng(devices=[]):
        model = _empty(folder, structure.task_type)
        _cut(model, checkpoint.kept)
        _add_biases(model, checkpoint.added_biases)
        _attach_rest(model, structure)
    _fill(model, tensors)
    verify_checkpoint(model, checkpoint)
    if (folder / GENERATION).exists():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise StructureError(
                f"cannot read {folder / GENERATION}: {error}", EXPORT_HINT
            ) from error
    return cast("PreTrainedModel", model.to(device).eval())


def verify_checkpoint(model: nn.Module, checkpoint: Checkpoint | str | Path) -> None:
    """Check that a model's weights are those of a checkpoint.

    Args:
        model: A slim model.
        checkpoint: Or the folder that holds it.

    Raises:
        StructureError: If they are others.
        ModelStateError: If the model is in a state where its weights cannot be read, see ``model_state``.
    """
    check_state(model, allow={"attached"})
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    expected = checkpoint.weight_fingerprint
    if not same_weights(model, expected):
        found = identify(model).weight_fingerprint
        raise StructureError(
            f"the weights are not those of the checkpoint: it has fingerprint {expected[:12]}, "
            f"the model {found[:12]}",
            "load the model with load_checkpoint(folder)",
        )


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once: of tied ones the first."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _of_model(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of backbone and head, nothing attached."""
    attached = attachment_of(model)
    inside = set() if attached is None else {id(p) for p in attached.parameters()}
    return [(n, p) for n, p in model.named_parameters() if id(p) not in inside]


def _rest(position: Position, units: Sequence[int]) -> tuple[int, ...]:
    """All other units of a position."""
    return tuple(unit for unit in range(position.units) if unit not in set(units))


def _empty(folder: Path, task_type: str, device: str = "cpu") -> PreTrainedModel:
    """A task type's model by the folder's config, its weights as the memory was."""
    from transformers.initialization import no_init_weights

    try:
        config = load_config(str(folder), slim=True)
        auto = auto_class(str(folder), config, facts_of(task_type).auto_model)
        with LOADING, torch.device(device), no_init_weights():
            model: PreTrainedModel = auto.from_config(config)
    except Exception as error:  # there is no end to what transformers raises on a malformed one
        reason = error.message if isinstance(error, BackboneError) else repr(error)
        raise StructureError(
            f"the checkpoint's config cannot be used: {reason}", EXPORT_HINT
        ) from error
    model.tie_weights()
    return model


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors, after the check that they are the ones that were written."""
    file = folder / WEIGHTS
    try:
        found = _sha256(file)
        if found != sha256:
            raise StructureError(
                f"{file} is damaged or not the checkpoint's: its SHA-256 is {found}, not {sha256}",
                "copy or export the folder anew",
            )
        return load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise StructureError(f"cannot read {file}: {error}", EXPORT_HINT) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cut(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Cut all units but the kept ones."""
    positions = positions_of(model)
    removed = {}
    for name, units in kept.items():
        position = find(positions, name)
        if not set(range(position.units)).issuperset(units):
            raise StructureError(
                f"the checkpoint keeps units {list(units)} of {name}, which has {position.units}"
            )
        removed[name] = _rest(position, units)
    remove_units(model, removed)


def _add_biases(model: nn.Module, names: Sequence[str]) -> None:
    """Room for the biases that merging made."""
    modules = dict(model.named_modules())
    for name in names:
        path, _, last = name.rpartition(".")
        module = modules.get(path)
        if (
            last != "bias"
            or not isinstance(module, nn.Linear | nn.LayerNorm)
            or module.bias is not None
        ):
            raise StructureError(f"the checkpoint adds {name}, which the model has no place for")
        module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)))


def _attach_rest(model: nn.Module, structure: Structure) -> None:
    """Attach what does not merge."""
    positions = positions_of(model)
    kinds = {kind.name: kind for kind in structure.kinds}
    rest = [
        (find(positions, c.position), kinds[c.kind], c.size, 1)
        for c in structure.candidates
        if not kinds[c.kind].mergeable and kinds[c.kind].role != "remove"
    ]
    if rest:
        attach_modules(model, rest)


def _untie(model: nn.Module, names: Set[str]) -> None:
    """Parameters of their own where the file holds apart what the config ties: output embeddings of T5 v1.1, FLAN."""
    modules = dict(model.named_modules())
    for name in names:
        path, _, last = name.rpartition(".")
        parameter = getattr(modules.get(path), last, None)
        if isinstance(parameter, nn.Parameter):
            setattr(modules[path], last, nn.Parameter(parameter.detach().clone()))


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer its tensor."""
    _untie(model, tensors.keys() - _own_tensors(model).keys())
    wanted = _own_tensors(model)
    shapes = [n for n, t in wanted.items() if n in tensors and t.shape != tensors[n].shape]
    missing, unknown = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or unknown or shapes:
        raise StructureError(
            "the weights do not fit the checkpoint's config: "
            f"unknown {sorted(unknown)[:3]}, missing {sorted(missing)[:3]}, other shape {shapes[:3]}"
        )
    for name, tensor in wanted.items():
        tensor.data = tensors[name]
