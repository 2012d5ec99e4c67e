"""Loading a backbone: where it lies, its config, weights and tokenizer."""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError
from sparsearch.spaces.backbone.folder import (
    check_config,
    check_folder,
    check_weights,
    find_local,
    split_gguf,
)
from sparsearch.spaces.backbone.loading_lock import LOADING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel
from sparsearch.spaces.backbone.parameters import NEW_POOLER, head_parameters, is_pooler
from sparsearch.spaces.backbone.quantised.settings import Quantisation, loading_keywords
from sparsearch.spaces.backbone.quantised.weights import KeptAsLoaded
from sparsearch.spaces.backbone.tokens import pads_as_configured

__all__ = [
    "auto_class",
    "check_head",
    "check_padding_token",
    "gguf_keywords",
    "load_config",
    "load_from",
    "load_model",
    "load_tokenizer",
    "locate",
    "skeleton",
]


SEQUENCE_CLASSIFIER = "AutoModelForSequenceClassification"
"""Class of transformers for who asks for positions and costs alone: every family has it."""


def locate(path: str, relative_to: Path | None = None) -> str:
    """Resolve a model path: ``pkg:NAME/FOLDER`` in an installed package, a local folder, or a hub id.

    Each may be followed by the name of a GGUF file in it: ``FOLDER/small.gguf``.

    Raises:
        BackboneError: If a package, the folder or the GGUF file is missing, or the folder has no ``config.json``.
    """
    if path.startswith("pkg:"):
        package, _, inside = path.removeprefix("pkg:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # no name of a package, or its parent is missing
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise BackboneError(
                f"model.path {path!r}: the package {package!r} is not installed",
                f"pip install {package.replace('_', '-')}",
            )
        root = Path(next(iter(spec.submodule_search_locations))).resolve()
        folder = (root / inside).resolve()
        what = "folder" if split_gguf(path)[1] is None else "file"
        found = folder.is_dir() if what == "folder" else folder.is_file()
        if not found or not folder.is_relative_to(root):
            raise BackboneError(f"model.path {path!r}: the package has no {what} {inside!r}")
        return str(folder)
    local = find_local(path, relative_to)
    return path if local is None else str(local)


def load_from(what: str, path: str, load: Any) -> Any:
    """Call a transformers loader; turn its many errors into one that names the path."""
    try:
        return load()
    except (
        OSError,
        ValueError,
        KeyError,
        struct.error,
    ) as error:  # the last: a GGUF file is cut off
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"model.path {path!r}: cannot load the {what}: {first}",
            "give a hub id, a folder with config.json and model.safetensors, a GGUF file, or pkg:NAME/FOLDER",
        ) from error


def _gguf_file(path: str) -> dict[str, str]:
    """The keyword by which transformers reads a GGUF file; none for other models.

    Raises:
        BackboneError: If the package that reads it is not installed.
    """
    from transformers.utils import is_gguf_available

    name = split_gguf(path)[1]
    if name is None:
        return {}
    if not is_gguf_available():
        raise BackboneError(
            f"model.path {path!r}: reading a GGUF file needs the package gguf",
            "pip install 'sparsearch[gguf]'",
        )
    return {"gguf_file": name}


def gguf_keywords(path: str) -> dict[str, Any]:
    """Keywords by which ``from_pretrained`` of a model unpacks a GGUF file to plain weights; none for other models.

    Raises:
        BackboneError: If the package that reads it is not installed.
    """
    from transformers import GgufConfig

    file = _gguf_file(path)
    return file and {**file, "quantization_config": GgufConfig(dequantize=True)}


def load_config(path: str, revision: str | None = None, *, slim: bool = False) -> Any:
    """The model's configuration, after the checks that can be made before its weights are loaded.

    Args:
        path: Hub id, local folder or GGUF file.
        revision: Hub revision.
        slim: Whether the model may be a slim one of ours, which transformers cannot load.

    Raises:
        BackboneError: If it cannot be read, its weights are quantised (those of a GGUF file are unpacked), or a PEFT
            adapter lies beside it.
    """
    from transformers import AutoConfig

    check_folder(path, revision, slim=slim)
    source, file = split_gguf(path)[0], _gguf_file(path)
    config = load_from(
        "config",
        path,
        lambda: AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, **file
        ),
    )
    check_config(path, config)
    return config


def load_model(
    path: str,
    *,
    revision: str | None = None,
    num_labels: int = 2,
    sha256: str | None = None,
    config: Any | None = None,
    auto_model: str = SEQUENCE_CLASSIFIER,
    quantisation: Quantisation | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """A pretrained model with the head of a task, in float32 and evaluation mode; its linears in fewer bits, if asked.

    Args:
        path: Hub id, local folder or GGUF file, as ``locate`` returns it.
        revision: Hub revision.
        num_labels: Outputs of a new head; 1 for regression.
        sha256: If given, the checksum that ``model.safetensors``, or the GGUF file, must have.
        config: In the place of the folder's own, with its own number of labels.
        auto_model: Class of transformers that loads it, as its task type says.
        quantisation: Of its linears, see ``quantised.settings``.
        device: Where a quantised model is put, and quantised; a plain one is loaded onto the CPU.

    Raises:
        BackboneError: If it cannot be loaded, its family has no such model, the checksum differs, or the package that
            quantises is not installed.
    """
    import torch
    from transformers.utils import logging

    own = load_config(path, revision)
    source, gguf = split_gguf(path)
    auto = auto_class(path, own, auto_model)
    own.num_labels = num_labels
    check_weights(path)
    if sha256 is not None:
        _check_sha256(Path(source) / (gguf or "model.safetensors"), sha256)
    keywords = loading_keywords(quantisation, device)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with LOADING, torch.random.fork_rng(devices=[]):
            model, report = load_from(
                "weights",
                path,
                lambda: auto.from_pretrained(
                    source,
                    revision=revision,
                    config=config or own,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **gguf_keywords(path),
                    **keywords,
                ),
            )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    _check_complete(model, path, report)
    KeptAsLoaded(model)
    return model.eval()


def _check_complete(model: nn.Module, path: str, report: dict[str, Any]) -> None:
    """All but the head must be in the file; a pooler that it lacks counts as part of the head."""
    head = {name for name, _ in head_parameters(model)}
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    poolers = {name for name in report["missing_keys"] if is_pooler(name)}
    setattr(model, NEW_POOLER, frozenset(poolers))
    broken = sorted((mismatched | set(report["missing_keys"])) - head - poolers)
    if broken:
        raise BackboneError(
            f"model.path {path!r}: {len(broken)} of the backbone's weights are missing or of another "
            f"shape, the first is {broken[0]}",
            "the file belongs to another config, or is incomplete",
        )


def check_head(path: str, model: nn.Module) -> None:
    """Refuse a model in which no head is found, for a task that trains one.

    Args:
        path: As in the study, for the message.
        model: With the head of the task; the meta device will do.

    Raises:
        BackboneError: If so: the head would count as backbone, and stay as it was drawn.
    """
    if not any(head_parameters(model)):
        raise BackboneError(
            f"model.path {path!r}: no head is found outside of the backbone of a {type(model).__name__}, so that "
            "none would be trained",
            "choose a model of another family for this task",
        )


def _check_sha256(file: Path, expected: str) -> None:
    if not file.is_file():
        raise BackboneError(f"model.sha256 is given, but there is no file {file.name!r}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected.lower():
        raise BackboneError(
            f"{file.name} has SHA-256 {found}, not {expected}",
            "the file is damaged or not the published one; install it anew",
        )


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The tokenizer; where it has no padding token, the end-of-sequence token pads."""
    from transformers import AutoTokenizer

    source, file = split_gguf(path)[0], _gguf_file(path)
    tokenizer = load_from(
        "tokenizer",
        path,
        lambda: AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, **file
        ),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise BackboneError(
            f"model.path {path!r}: the tokenizer has neither a padding nor an end token"
        )
    tokenizer.padding_side = "right"  # batches are cut to their longest row at the right
    return tokenizer


def check_padding_token(path: str, config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that pads with another token than the one from which the model counts positions.

    Raises:
        BackboneError: If so; families that do not count from it take any.
    """
    if pads_as_configured(config) and config.pad_token_id != tokenizer.pad_token_id:
        raise BackboneError(
            f"model.path {path!r}: the tokenizer pads with token {tokenizer.pad_token_id}, but this model counts its "
            f"positions from token {config.pad_token_id} (pad_token_id in config.json)",
            "put the tokenizer that the model was trained with into its folder",
        )


def skeleton(
    path: str, revision: str | None = None, auto_model: str = SEQUENCE_CLASSIFIER
) -> PreTrainedModel:
    """The model's architecture on the meta device: shapes and names, no weights, no memory.

    Args:
        path: Hub id, local folder or GGUF file, as ``locate`` returns it.
        revision: Hub revision.
        auto_model: Class of transformers that builds it, as its task type says.

    Raises:
        BackboneError: If its config cannot be read, or it is of a family that is unknown or has no such head.
    """
    import torch

    config = load_config(path, revision)
    auto = auto_class(path, config, auto_model)
    with LOADING, torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def auto_class(path: str, config: Any, name: str = SEQUENCE_CLASSIFIER) -> Any:
    """A loader of transformers, after the check that it knows the model's family.

    Raises:
        BackboneError: If it does not.
    """
    import transformers

    auto = getattr(transformers, name)
    advice = "choose a model that has the head of this task, or another task.type (of a command: --type)"
    if type(config) not in auto._model_mapping:
        raise BackboneError(
            f"model.path {path!r}: {name} of transformers has no model of family {config.model_type!r}",
            advice,
        )
    if auto is transformers.AutoModelForCausalLM and _sees_later_tokens(config):
        raise BackboneError(
            f"model.path {path!r}: a {config.model_type} reads the tokens that follow too; a language model learns "
            "each token from those before it",
            advice,
        )
    return auto


def _sees_later_tokens(config: Any) -> bool:
    """Whether a config is of an encoder: transformers builds a causal head on these too."""
    from transformers import AutoModelForMaskedLM

    if getattr(config, "is_encoder_decoder", False):
        return True
    is_decoder = getattr(config, "is_decoder", False)
    return type(config) in AutoModelForMaskedLM._model_mapping and not is_decoder
