"""What makes two backbones the same one: their weights, and the settings by which they compute."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsearch.spaces.backbone.fingerprint import fingerprint, fingerprint_1, fingerprint_2
from sparsearch.spaces.backbone.quantised.settings import Quantisation, quantisation_of
from sparsearch.spaces.backbone.quantised.weights import stored_parts
from sparsearch.spaces.families.registry import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
from sparsearch.spaces.backbone.parameters import (
    ATTACHED,
    backbone_parameters,
    base_of,
    count_params,
    family_name,
    language_head_parameters,
    positions_of,
)

__all__ = [
    "BackboneId",
    "FORMS",
    "form_of",
    "hash_settings",
    "identify",
    "same_fingerprints",
    "same_settings",
    "same_weights",
    "weight_fingerprint",
]

FORMS = ("", "2-", "3-")
"""How weight fingerprints begin, the oldest form first."""


_SETTINGS_FORM = "2-"
"""How a config hash begins that leaves defaults out; those before cannot be compared."""


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
        "quantization_config",  # the fingerprint sees the weights that it made
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
        params: Parameters of the backbone, however few bits each is kept in.
        quantisation: How bitsandbytes quantised it, see ``quantised.settings``; None where its weights are plain.
    """

    path: str
    revision: str | None
    family: str
    config_hash: str
    weight_fingerprint: str
    params: int
    quantisation: Quantisation | None = field(default=None, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {"quantisation"} if self.quantisation is None else set()
        return {name: value for name, value in vars(self).items() if name not in plain}


def identify(model: nn.Module, path: str = "", revision: str | None = None) -> BackboneId:
    """Identity of a model's backbone. On the meta device the fingerprint is empty."""
    return BackboneId(
        path=path,
        revision=revision,
        family=family_name(model),
        config_hash=hash_settings(model),
        weight_fingerprint=weight_fingerprint(model),
        params=count_params(model),
        quantisation=quantisation_of(model),
    )


def hash_settings(model: nn.Module) -> str:
    """SHA-256 of the settings of a backbone's config that change what it computes, defaults left out."""
    config = base_of(model).config
    tokens = family_of(config.model_type).tokens  # type: ignore[union-attr,arg-type]
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
    pooler's, sees every one of them; a pooler that the checkpoint lacked is part of the head. In the pooler's place
    stands a language head that is not tied to the embeddings. Older forms see the
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
    above = {name: tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")}
    above |= dict(_with_parts(model, language_head_parameters(model)))
    body = fingerprint(tensors.items())
    if body is None:
        return ""
    end = f"-{(fingerprint(above.items()) or '')[:20]}" if above else ""
    return f"{form}{body[:40]}{end}"


def form_of(fingerprint: str) -> str:
    """The form in which a weight fingerprint is written, one of ``FORMS``."""
    return next(form for form in reversed(FORMS) if fingerprint.startswith(form))


def same_weights(model: nn.Module, fingerprint: str) -> bool:
    """Whether a model's backbone has the weights of a fingerprint, compared in its form."""
    return same_fingerprints(weight_fingerprint(model, form_of(fingerprint)), fingerprint)


def same_fingerprints(one: str, other: str) -> bool:
    """Whether two weight fingerprints of one form are of equal weights.

    Where one of both has no pooler (or language head), or a new one, they are not compared: a head need not use it.
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
    yield from _with_parts(base_of(model), backbone_parameters(model))
    for path, module in base_of(model).named_modules():
        if f"{path}.".startswith(f"{ATTACHED}."):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}".lstrip("."), buffer


def _with_parts(
    root: nn.Module, named: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Named parameters; of one in 8 or 4 bits its codes and scales."""
    for name, parameter in named:
        module = root.get_submodule(name.rpartition(".")[0])
        yield from stored_parts(name, module, parameter)


def _weights_at_positions(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of linears and norms, named by their position."""
    modules = dict(base_of(model).named_modules())
    for position in positions_of(model):
        if position.role in ("linear", "norm"):
            for name, weight in modules[position.module].named_parameters(recurse=False):
                yield f"{position.name}.{name}", weight
