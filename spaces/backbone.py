"""The backbone: loading, identity, and what belongs to it and what to the task head."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError
from sparsearch.spaces.fingerprint import fingerprint, fingerprint_1, fingerprint_2
from sparsearch.spaces.model_folder import check_config, check_folder, check_weights, find_folder
from sparsearch.spaces.positions import FAMILIES, Position, scan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = [
    "FORMS",
    "BackboneId",
    "base_of",
    "check_padding_token",
    "count_params",
    "count_with_pooler",
    "dense_flops_per_token",
    "form_of",
    "hash_settings",
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
    "pads_as_configured",
    "positions_of",
    "replaced_weights",
    "same_fingerprints",
    "same_settings",
    "same_weights",
    "skeleton",
    "weight_fingerprint",
]

ATTACHED = "sparsearch"
"""Name under which attached modules live on a model; they are no part of the backbone."""

FORMS = ("", "2-", "3-")
"""How weight fingerprints begin, the oldest form first."""
_SETTINGS_FORM = "2-"
"""How a config hash begins that leaves defaults out; those before cannot be compared."""
_NEW_POOLER = "sparsearch_new_pooler"
_VOLATILE = frozenset(
    [
        "architectures",
        "attn_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "keys_to_ignore_at_inference",
        "label2id",
        "num_labels",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tie_word_embeddings",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    ]
)
"""Settings that may differ between two copies of one backbone: of a head, of a run, or of the software."""
_VOLATILE_NAMES = re.compile(r"drop|^initializer_|^output_|^summary_|^classifier|_token_id$|^_")
"""The same by their names: dropout, how weights are drawn, what is returned, heads, special tokens."""


@dataclass(frozen=True)
class BackboneId:
    """Which backbone a structure belongs to.

    Attributes:
        path: Where it was loaded from; informative, not part of the identity.
        revision: Hub revision, if any.
        family: ``config.model_type``.
        config_hash: SHA-256 of the settings that change what it computes, those at their defaults left out.
        weight_fingerprint: Of all its weights, see ``weight_fingerprint``.
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


def load_config(path: str, revision: str | None = None, *, slim: bool = False) -> Any:
    """The model's configuration, after the checks that can be made before its weights are loaded.

    Args:
        path: Hub id or local folder.
        revision: Hub revision.
        slim: Whether the model may be a slim one of ours, which transformers cannot load.

    Raises:
        BackboneError: If it cannot be read, its family is not in the table, its weights are quantised, or a PEFT
            adapter lies beside it.
    """
    from transformers import AutoConfig

    check_folder(path, revision, slim=slim)
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
    config: Any | None = None,
) -> PreTrainedModel:
    """A pretrained model with a sequence-classification head, in float32 and evaluation mode.

    Args:
        path: Hub id or local folder, as ``locate`` returns it.
        revision: Hub revision.
        num_labels: Outputs of the head; 1 for regression.
        sha256: If given, the checksum that ``model.safetensors`` must have.
        config: In the place of the folder's own, with its own number of labels.

    Raises:
        BackboneError: If it cannot be loaded, is of an unknown family, or the checksum differs.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    own = load_config(path, revision)
    own.num_labels = num_labels
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
                    config=config or own,
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


def pads_as_configured(config: Any) -> bool:
    """Whether the config's padding token is a part of what the model computes, so that no other may pad."""
    return "pad_token_id" in FAMILIES[config.model_type].tokens


def most_tokens(config: Any) -> int | None:
    """Longest input that a model's position embeddings allow; None where they are relative."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and pads_as_configured(config):
        return positions - int(config.pad_token_id) - 1
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
    return BackboneId(
        path=path,
        revision=revision,
        family=str(model.config.model_type),  # type: ignore[union-attr]
        config_hash=hash_settings(model),
        weight_fingerprint=weight_fingerprint(model),
        params=count_params(model),
    )


def hash_settings(model: nn.Module) -> str:
    """SHA-256 of the settings of a model's config that change what its backbone computes, defaults left out."""
    config = model.config
    family = FAMILIES.get(config.model_type)  # type: ignore[union-attr,arg-type]
    tokens = () if family is None else family.tokens
    defaults = type(config)().to_dict()  # type: ignore[operator, union-attr]
    settings = {
        key: value
        for key, value in config.to_dict().items()  # type: ignore[operator, union-attr]
        if (value != defaults[key] if key in defaults else value)
        and key not in _VOLATILE
        and (key in tokens or not _VOLATILE_NAMES.search(key))
    }
    encoded = json.dumps(settings, sort_keys=True, default=str).encode()
    return (_SETTINGS_FORM + hashlib.sha256(encoded).hexdigest())[:64]


def weight_fingerprint(model: nn.Module, form: str = FORMS[-1]) -> str:
    """Fingerprint of a backbone's weights; empty if any is on the meta device.

    The newest form, ``3-`` with 40 digits of all weights and buffers but the pooler's, then ``-`` and 20 of the
    pooler's, sees every one of them; a pooler that the checkpoint lacked is part of the head. Older forms see the
    linears and norms at positions: ``2-`` all of their entries, the first form ("") some.

    Args:
        model: With any head; nothing attached counts.
        form: One of ``FORMS``.
    """
    if form != FORMS[-1]:
        older = fingerprint_2 if form == "2-" else fingerprint_1
        digest = older(_weights_at_positions(model))
        return "" if digest is None else (form + digest)[:64]
    tensors = dict(_backbone_tensors(model))
    pooler = {name: tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")}
    body = fingerprint(tensors.items())
    if body is None:
        return ""
    end = f"-{(fingerprint(pooler.items()) or '')[:20]}" if pooler else ""
    return f"{form}{body[:40]}{end}"


def form_of(fingerprint: str) -> str:
    """The form in which a weight fingerprint is written, one of ``FORMS``."""
    return next(form for form in reversed(FORMS) if fingerprint.startswith(form))


def same_weights(model: nn.Module, fingerprint: str) -> bool:
    """Whether a model's backbone has the weights of a fingerprint, compared in its form."""
    return same_fingerprints(weight_fingerprint(model, form_of(fingerprint)), fingerprint)


def same_fingerprints(one: str, other: str) -> bool:
    """Whether two weight fingerprints of one form are of equal weights.

    Where one of both has no pooler, or a new one, poolers are not compared: a head need not use it.
    """
    if form_of(one) != FORMS[-1] or form_of(other) != FORMS[-1]:
        return one == other
    (_, body, *pooler), (_, other_body, *other_pooler) = one.split("-"), other.split("-")
    return body == other_body and (pooler == other_pooler or not pooler or not other_pooler)


def same_settings(config_hash: str, other: str) -> bool:
    """Whether two config hashes say the same; one of version 0.1, which changed with every default, says nothing."""
    comparable = all(hashed.startswith(_SETTINGS_FORM) for hashed in (config_hash, other))
    return config_hash == other or not comparable


def _backbone_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of the backbone, and the buffers that are saved with them."""
    yield from backbone_parameters(model)
    for path, module in base_of(model).named_modules():
        if f"{path}.".startswith(f"{ATTACHED}."):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}".lstrip("."), buffer


def _weights_at_positions(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of linears and norms, named by their position."""
    modules = dict(base_of(model).named_modules())
    for position in positions_of(model):
        if position.role in ("linear", "norm"):
            for name, weight in modules[position.module].named_parameters(recurse=False):
                yield f"{position.name}.{name}", weight


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
