"""Where a model is loaded from: found, whole, and without what loading would add or cannot read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparsearch.documents import read_json
from sparsearch.errors import BackboneError

__all__ = ["check_config", "check_folder", "check_weights", "find_local", "split_gguf"]

_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_CHECKPOINT = "checkpoint.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_GIVE = "give a folder with config.json and model.safetensors, a GGUF file, a hub id, or pkg:NAME/FOLDER"


def split_gguf(path: str) -> tuple[str, str | None]:
    """Folder or hub id of a model, and the name of the GGUF file there, None where the path names none.

    Example:
        >>> split_gguf("models/small.gguf")
        ('models', 'small.gguf')
        >>> split_gguf("models")
        ('models', None)
    """
    if not path.endswith(".gguf"):
        return path, None
    folder, name = os.path.split(path)
    return folder or ".", name


def find_local(path: str, relative_to: Path | None = None) -> Path | None:
    """The model folder, or the GGUF file, that a path names; None for a model on the hub.

    A path that exists is a folder here; so is one that cannot be a hub id (it begins with ``.``, ``/`` or ``~``, or
    has several slashes). The same holds for what stands before the name of a GGUF file.

    Args:
        path: As written in a study, a structure or a command.
        relative_to: Folder in which it is looked up first; then the current one.

    Raises:
        BackboneError: If there is no such folder, or neither ``config.json`` nor the GGUF file in it.
    """
    place, gguf = split_gguf(path)
    wanted = gguf or _CONFIG
    starts = [start for start in (relative_to, Path.cwd()) if start is not None]
    folders = [os.path.join(start, os.path.expanduser(place)) for start in starts]
    for folder in folders:
        if _has(folder, wanted):
            return Path(folder).resolve() / (gguf or "")
    existing = next((folder for folder in folders if os.path.isdir(folder)), None)
    if existing is None and _is_hub_id(place):
        return None
    prefix = "" if os.path.isabs(path) else f"model.path {path!r}: "
    if existing is None:
        raise BackboneError(
            f"{prefix}there is no folder {os.path.abspath(folders[0])}", f"put it back, or {_GIVE}"
        )
    only_adapter = gguf is None and _has(existing, _ADAPTER)
    content = "holds a PEFT adapter, not a model" if only_adapter else f"has no {wanted}"
    raise BackboneError(f"{prefix}the folder {os.path.abspath(existing)} {content}", _GIVE)


def _has(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))


def _is_hub_id(path: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def check_folder(path: str, revision: str | None = None, *, slim: bool = False) -> None:
    """Refuse a model that is not there, is slim, or has a PEFT adapter beside it: transformers would load both.

    Args:
        path: Local folder, GGUF file or hub id.
        revision: Hub revision.
        slim: Whether a slim model of ours is fine.

    Raises:
        BackboneError: If so.
    """
    from transformers.utils import find_adapter_config_file

    folder = find_local(path)
    if not slim and folder is not None and _is_slim(folder):
        raise BackboneError(
            f"model.path {path!r}: the folder holds a slim model of sparsearch, which transformers cannot load",
            "give the model that it was made from; sparsearch.load_checkpoint(folder) loads the slim one",
        )
    if find_adapter_config_file(split_gguf(path)[0], revision=revision) is not None:
        raise BackboneError(
            f"model.path {path!r}: a PEFT adapter lies beside the model ({_ADAPTER}), and transformers would "
            "load it with the model",
            f"move {_ADAPTER} and adapter_model.safetensors elsewhere, or merge the adapter with PEFT's "
            "merge_and_unload() and save the model to a new folder",
        )


def _is_slim(folder: Path) -> bool:
    """Whether ``export --to checkpoint`` wrote the folder, and its model is not a plain one of transformers."""
    try:
        found = read_json((folder / _CHECKPOINT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("plain") is False


def check_config(path: str, config: Any) -> None:
    """Refuse a model whose config says that its weights are quantised.

    Raises:
        BackboneError: If so.
    """
    quantisation = getattr(config, "quantization_config", None)
    if not quantisation:
        return
    settings = quantisation if isinstance(quantisation, dict) else vars(quantisation)
    method = getattr(settings.get("quant_method"), "value", settings.get("quant_method"))
    raise BackboneError(
        f"model.path {path!r}: the model's weights are quantised ({method})",
        "give the model that it was quantised from; model.quantise: 8 or 4 quantises its linears as it is loaded",
    )


def check_weights(path: str) -> None:
    """Refuse a local folder without weights in safetensors.

    Raises:
        BackboneError: If so; it names weights of another format.
    """
    if not os.path.isdir(path) or any(_has(path, name) for name in _WEIGHTS):
        return
    others = sorted(
        name for name in os.listdir(path) if name.endswith((".bin", ".h5", ".msgpack"))
    )
    instead = f", but {others[0]}" if others else ""
    raise BackboneError(
        f"the folder {os.path.abspath(path)} has no {_WEIGHTS[0]}{instead}",
        "save the model there again with save_pretrained, which writes safetensors",
    )
