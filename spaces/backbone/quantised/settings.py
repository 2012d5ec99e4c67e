"""How a backbone was quantised, and the keywords that load one so."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sparsearch.errors import BackboneError
from sparsearch.spaces.backbone.parameters import (
    base_of,
    head_parameters,
    is_pooler,
    language_head_parameters,
)
from sparsearch.spaces.backbone.quantised.weights import quantised_linears

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Bits",
    "Quantisation",
    "check_installed",
    "loading_keywords",
    "quantisation_of",
    "quantise_to",
]

Bits: TypeAlias = Literal[8, 4]

Quantisation: TypeAlias = Mapping[str, Any]
"""Settings of transformers' ``BitsAndBytesConfig`` that are not at their defaults and change the weights."""

_BY_BITS: Mapping[int, Quantisation] = {
    8: {"load_in_8bit": True},
    4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
_OF_THE_RUN = ("quant_method", "bnb_4bit_compute_dtype")
"""Settings that say how to compute with the weights, not what they are."""


def check_installed() -> None:
    """Refuse to go on without the package that quantises.

    Raises:
        BackboneError: If it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            "model.quantise needs the package bitsandbytes", "pip install 'sparsearch[quantised]'"
        )


def quantise_to(bits: Bits, bare: nn.Module) -> Quantisation:
    """The settings that quantise the linears of a backbone, but no head: that trains, or gives the logits.

    Args:
        bits: 8, or 4 (the numbers of NF4).
        bare: The model with its head; the meta device will do.
    """
    outside = [*head_parameters(bare), *language_head_parameters(bare)]
    names = {name for name, _ in outside} | {n for n, _ in bare.named_parameters() if is_pooler(n)}
    skipped = {name.rpartition(".")[0] for name in names}
    find = getattr(bare, "get_output_embeddings", lambda: None)
    skipped |= {path for path, module in bare.named_modules() if module is find()}
    return {**_BY_BITS[bits], "llm_int8_skip_modules": sorted(skipped)}


def loading_keywords(quantisation: Quantisation | None, device: str = "cpu") -> dict[str, Any]:
    """Keywords by which ``from_pretrained`` quantises a model and puts it on a device; none where it does not.

    Raises:
        BackboneError: If the package that quantises is not installed.
    """
    if quantisation is None:
        return {}
    check_installed()
    from transformers import BitsAndBytesConfig

    # It warns in every product that float32 numbers are rounded, and of kernels that it cannot fetch.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return {
        "quantization_config": BitsAndBytesConfig(**quantisation),
        "device_map": {"": device},
    }


def quantisation_of(model: nn.Module) -> Quantisation | None:
    """How bitsandbytes has quantised a model as transformers loaded it; None where it has not."""
    for part in (model, base_of(model)):
        config: Any = getattr(getattr(part, "config", None), "quantization_config", None)
        if hasattr(config, "to_diff_dict") and next(quantised_linears(model), None) is not None:
            settings = config.to_diff_dict()
            return {
                name: settings[name]
                for name in sorted(settings, key=lambda name: ("load_in" not in name, name))
                if name not in _OF_THE_RUN and not name.startswith("_")
            }
    return None
