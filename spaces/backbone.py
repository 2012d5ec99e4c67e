"""The backbone: loading, identity, and what belongs to it and what to the task head."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError
from sparsearch.spaces.model_folder import check_config, check_folder, check_weights, find_folder
from sparsearch.spaces.positions import FAMILIES, Position, scan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = [
    "BackboneId",
    "base_of",
    "count_params",
    "count_with_pooler",
    "dense_flops_per_token",
    "head_parameters",
    "identify",
    "know_pooler",
    "layers_of",
    "load_config",
    "load_model",
    "load_tokenizer",
    "locate",
    "longest_input",
    "most_tokens",
    "positions_of",
    "replaced_weights",
    "same_weights",
    "skeleton",
]

ATTACHED = "sparsearch"
"""Name under which attached modules live on a model; they are no part of the backbone."""

_FORM = "2-"
_SAMPLE = 4096
_NEW_POOLER = "sparsearch_new_pooler"
_VOLATILE = frozenset(
    [
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "finetuning_task",
        "id2label",
        "label2id",
        "num_labels",
        "pad_token_id",
        "problem_type",
        "task_specific_params",
        "transformers_version",
        "use_cache",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
    ]
)


@dataclass(frozen=True)
class BackboneId:
    """Which backbone a structure belongs to.

    Attributes:
        path: Where it was loaded from; informative, not part of the identity.
        revision: Hub revision, if any.
        family: ``config.model_type``.
        config_hash: SHA-256 of the architecture's settings (label names and the like left out).
        weight_fingerprint: SHA-256 over names, shapes and sums of the weights at all positions, see ``same_weights``.
        params: Parameters of the backbone.
    """

    path: str
    revision: str | None
    family: str
    config_hash: str
    weight_fingerprint: str
    params: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dict(vars(self))


def locate(path: str, relative_to: Path | None = None) -> str:
    """Resolve a model path: ``pkg:NAME/FOLDER`` in an installed package, a local folder, or a hub id.

    Raises:
        BackboneError: If a package or the folder is missing, or the folder has no ``config.json``.
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
        if not folder.is_dir() or not folder.is_relative_to(root):
            raise BackboneError(f"model.path {path!r}: the package has no folder {inside!r}")
        return str(folder)
    local = find_folder(path, relative_to)
    return path if local is None else str(local)


def _load(what: str, path: str, load: Any) -> Any:
    """Call a transformers loader; turn its many errors into one that names the path."""
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"model.path {path!r}: cannot load the {what}: {first}",
            "give a hub id, a folder with config.json and model.safetensors, or pkg:NAME/FOLDER",
        ) from error


def load_config(path: str, revision: str | None = None) -> Any:
    """The model's configuration, after the checks that can be made before its weights are loaded.

    Raises:
        BackboneError: If it cannot be read, its family is not in the table, its weights are quantised, or a PEFT
            adapter lies beside it.
    """
    from transformers import AutoConfig

    check_folder(path, revision)
    config = _load(
        "config",
        path,
        lambda: AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False),
    )
    if config.model_type not in FAMILIES:
        raise BackboneError(
            f"model.path {path!r}: model family {config.model_type!r} is not supported; "
            f"supported: {', '.join(sorted(FAMILIES))}",
            "choose a model of a supported family",
        )
    check_config(path, config)
    return config


def load_model(
    path: str,
    *,
    revision: str | None = None,
    num_labels: int = 2,
    sha256: str | None = None,
) -> PreTrainedModel:
    """A pretrained model with a sequence-classification head, in float32 and evaluation mode.

    Args:
        path: Hub id or local folder, as ``locate`` returns it.
        revision: Hub revision.
        num_labels: Outputs of the head; 1 for regression.
        sha256: If given, the checksum that ``model.safetensors`` must have.

    Raises:
        BackboneError: If it cannot be loaded, is of an unknown family, or the checksum differs.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    load_config(path, revision)
    check_weights(path)
    if sha256 is not None:
        _check_sha256(Path(path) / "model.safetensors", sha256)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            model, report = _load(
                "weights",
                path,
                lambda: AutoModelForSequenceClassification.from_pretrained(
                    path,
                    revision=revision,
                    num_labels=num_labels,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                ),
            )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    _check_complete(model, path, report)
    return model.eval()


def _check_complete(model: nn.Module, path: str, report: dict[str, Any]) -> None:
    """All but the head must be in the file; a pooler that it lacks counts as part of the head."""
    head = {name for name, _ in head_parameters(model)}
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    poolers = {name for name in report["missing_keys"] if _is_pooler(name)}
    setattr(model, _NEW_POOLER, frozenset(poolers))
    broken = sorted((mismatched | set(report["missing_keys"])) - head - poolers)
    if broken:
        raise BackboneError(
            f"model.path {path!r}: {len(broken)} of the backbone's weights are missing or of another "
            f"shape, the first is {broken[0]}",
            "the file belongs to another config, or is incomplete",
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

    tokenizer = _load(
        "tokenizer",
        path,
        lambda: AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise BackboneError(
            f"model.path {path!r}: the tokenizer has neither a padding nor an end token"
        )
    tokenizer.padding_side = "right"  # batches are cut to their longest row at the right
    return tokenizer


def most_tokens(config: Any) -> int | None:
    """Longest input that a model's position embeddings allow; None where they are relative."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type == "roberta":
        return (
            positions - int(config.pad_token_id) - 1
        )  # its position ids start behind the padding's
    return positions


def longest_input(wanted: int, tokenizer: Any, most: int | None) -> int:
    """Tokens at which rows are cut: as wanted, or fewer where the tokenizer or the model (``most_tokens``) ends."""
    return min(wanted, int(tokenizer.model_max_length), most or wanted)


def skeleton(path: str, revision: str | None = None, num_labels: int = 2) -> PreTrainedModel:
    """The model's architecture on the meta device: shapes and names, no weights, no memory."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = load_config(path, revision)
    config.num_labels = num_labels
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def base_of(model: nn.Module) -> nn.Module:
    """The backbone inside a model with a head (the model itself if it has none)."""
    from torch import nn

    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


@contextlib.contextmanager
def replaced_weights(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Other weights in the place of some modules' own, inside the context.

    Args:
        model: Its own weights are never written to.
        weights: Path of a module in the backbone -> its weight meanwhile.
    """
    modules = {path: base_of(model).get_submodule(path) for path in weights}
    own = {path: module.get_parameter("weight") for path, module in modules.items()}
    try:
        for path, module in modules.items():
            module.weight = weights[path]
        yield
    finally:
        for path, module in modules.items():
            module.weight = own[path]


def positions_of(model: nn.Module) -> tuple[Position, ...]:
    """Every position of a model's backbone, see ``positions.scan``."""
    return scan(base_of(model), str(model.config.model_type))  # type: ignore[union-attr]


def layers_of(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of layers with the module that holds it and its name there.

    None for several stacks, and where another module runs beside whichever layer is the first.
    """
    from torch import nn

    base = base_of(model)
    stacks = FAMILIES[base.config.model_type].stacks  # type: ignore[union-attr,index]
    beside = stacks[0].beside_first
    if len(stacks) > 1 or (beside and beside in dict(base.named_modules())):
        return None
    owner, _, name = stacks[0].layers.rpartition(".")
    layers = base.get_submodule(stacks[0].layers)
    assert isinstance(layers, nn.ModuleList), "layers stand in a list"
    return base.get_submodule(owner), name, layers


def backbone_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of the backbone, named under it; nothing attached, no head, no new pooler."""
    new = {id(p) for n, p in model.named_parameters() if n in getattr(model, _NEW_POOLER, ())}
    for name, parameter in base_of(model).named_parameters():
        if not name.startswith(f"{ATTACHED}.") and id(parameter) not in new:
            yield name, parameter


def head_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of the task head: what is neither backbone nor attached.

    A pooler that the checkpoint lacked is part of it: drawn anew, trained and stored with it.
    """
    inside = {id(p) for _, p in backbone_parameters(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside and not name.startswith(f"{ATTACHED}."):
            yield name, parameter


def count_params(model: nn.Module) -> int:
    """Parameters of the backbone."""
    return sum(p.numel() for _, p in backbone_parameters(model))


def count_with_pooler(model: nn.Module) -> int:
    """The same with a pooler that the checkpoint lacked, as ``skeleton``, which sees no checkpoint, counts them."""
    named = base_of(model).named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith(f"{ATTACHED}."))


def know_pooler(model: nn.Module, params: int) -> None:
    """Take a model's pooler for a new one where the checkpoint, of so many parameters, had none.

    ``load_model`` sees what a checkpoint lacks; of a model from elsewhere only the numbers tell.
    """
    pooler = {n: p for n, p in model.named_parameters() if _is_pooler(n)}
    if pooler and count_params(model) - sum(p.numel() for p in pooler.values()) == params:
        setattr(model, _NEW_POOLER, frozenset(pooler))


def _is_pooler(name: str) -> bool:
    return ".pooler." in name


def identify(model: nn.Module, path: str = "", revision: str | None = None) -> BackboneId:
    """Identity of a model's backbone. On the meta device the fingerprint is empty."""
    config = model.config.to_dict()  # type: ignore[union-attr, operator]
    kept = {k: v for k, v in config.items() if k not in _VOLATILE}
    encoded = json.dumps(kept, sort_keys=True, default=str).encode()
    return BackboneId(
        path=path,
        revision=revision,
        family=str(config["model_type"]),
        config_hash=hashlib.sha256(encoded).hexdigest(),
        weight_fingerprint=_fingerprint(model),
        params=count_params(model),
    )


def same_weights(model: nn.Module, fingerprint: str) -> bool:
    """Whether the weights at a model's positions have a fingerprint, of today's form or of the first one."""
    ours = _fingerprint(model) if fingerprint.startswith(_FORM) else _first_fingerprint(model)
    return ours == fingerprint


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 over canonical names, shapes, and exact sums over each row and each column of the weights' bits.

    Any entry that changes, changes two sums. Only weights at positions count, so the same backbone has one fingerprint
    under any head; and as numbers in float32, so that it has one in any precision that holds them all.
    """
    import torch

    digest = hashlib.sha256()
    for name, weight in _weights_at_positions(model):
        if weight.is_meta:
            return ""
        digest.update(name.encode())
        bits = weight.detach().float().contiguous().view(torch.int32)
        sums = [bits] if bits.dim() < 2 else [bits.sum(d, dtype=torch.int64) for d in (0, 1)]
        for found in sums:
            digest.update(found.cpu().numpy().tobytes())
    return (_FORM + digest.hexdigest())[:64]


def _first_fingerprint(model: nn.Module) -> str:
    """That of older files and databases: a sample of up to 4,096 entries of each weight, often in few columns."""
    digest = hashlib.sha256()
    for name, weight in _weights_at_positions(model):
        if weight.is_meta:
            return ""
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLE)].float().cpu().contiguous()
        digest.update(name.encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _weights_at_positions(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of linears and norms, named by position and shape."""
    modules = dict(base_of(model).named_modules())
    for position in positions_of(model):
        if position.role in ("linear", "norm"):
            for name, weight in modules[position.module].named_parameters(recurse=False):
                yield f"{position.name}.{name}{tuple(weight.shape)}", weight


def dense_flops_per_token(positions: tuple[Position, ...], tokens: int) -> int:
    """Inference FLOPs (2 x MACs) per token of the dense layers at a sequence length.

    Linears cost 2 in out; scores and mixing 4 n d per attention (methods, section 0).
    Embeddings, norms, pooler and head are left out, and DeBERTa's relative positions.

    Args:
        positions: The backbone's positions.
        tokens: Sequence length n.
    """
    total = 0
    for position in positions:
        if position.role == "linear":
            total += 2 * position.in_features * position.out_features
            if position.name.endswith((".attn.q", ".cross.q")):
                total += 4 * tokens * position.out_features
    return total
