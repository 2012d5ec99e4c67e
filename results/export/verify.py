"""What proves an export: logits of fixed rows, one by one and in a padded batch, before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsearch.errors import ExportError
from sparsearch.spaces.backbone.inputs.samples import reads_text, sample_images
from sparsearch.spaces.backbone.outputs import output_logits
from sparsearch.spaces.backbone.quantised.weights import exact_products
from sparsearch.spaces.families.registry import family_of

__all__ = ["check_padding", "compare", "logits_of", "vocabulary_of"]

TOLERANCE = 1e-5
"""Largest allowed difference of a logit after the round trip, relative to the largest logit if that is above 1."""
PADDING_TOLERANCE = 1e-3
"""The same, between a row alone and the row in a padded batch: other products, other rounding."""
_LENGTHS = (4, 9, 16)


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    """Logits of three fixed rows of tokens in float32, of other lengths: one by one, then in one padded batch.

    A model that reads no text gives those of three random images.

    Returns:
        (6, labels); (3, labels) where the model knows no padding token or reads no text. Of a model that gives
        logits for each token, those of real tokens: (58, vocabulary) or (29, vocabulary).
    """
    model.eval()
    with exact_products(model):
        return _logits_of(model)


def _logits_of(model: nn.Module) -> Tensor:
    if not reads_text(model):
        return output_logits(model(**sample_images(model, len(_LENGTHS))))
    pad: Any = getattr(model.config, "pad_token_id", None)
    rows = _rows(model)
    logits = [_logits(model, r, torch.ones_like(r)) for r in rows]
    if pad is not None:
        longest = max(_LENGTHS)
        ids = torch.cat([nn.functional.pad(r, (0, longest - r.shape[1]), value=pad) for r in rows])
        mask = torch.arange(longest) < torch.tensor(_LENGTHS)[:, None]
        logits.append(_logits(model, ids, mask.long()))
    return torch.cat(logits)


def _logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """(rows, labels), or (real tokens, vocabulary)."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    writes: Any = getattr(model, "get_output_embeddings", lambda: None)
    if getattr(model.config, "is_encoder_decoder", False) and writes() is not None:
        inputs["decoder_input_ids"] = ids
    if _of_choices(model):
        inputs = {name: values[:, None] for name, values in inputs.items()}
    logits = output_logits(model(**inputs))
    return logits if logits.dim() == 2 else logits[mask.bool()]


def _of_choices(model: nn.Module) -> bool:
    """Whether rows hold several texts, here one; also of a model inside PEFT's."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return type(inner).__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()


def _rows(model: nn.Module) -> list[Tensor]:
    """Random tokens, neither padding nor an end; where the family's rows end with one, each has it last."""
    config: Any = model.config
    end: Any = getattr(config, "eos_token_id", None)
    special = {getattr(config, "pad_token_id", None), *(end if isinstance(end, list) else [end])}
    tokens = torch.tensor([t for t in range(5, vocabulary_of(model)) if t not in special])
    generator = torch.Generator().manual_seed(0)
    rows = [tokens[torch.randint(len(tokens), (1, n), generator=generator)] for n in _LENGTHS]
    for row in rows if family_of(config.model_type).rows_end else ():
        row[:, -1] = end
    return rows


def vocabulary_of(model: nn.Module) -> int:
    """Tokens that a model knows: what its config says, else the rows of its first embeddings."""
    said = getattr(model.config, "vocab_size", None)
    tables = (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    return int(said or next(tables))


def compare(expected: Tensor, found: Tensor, step: str = "loaded again") -> float:
    """Largest difference of two sets of logits.

    Args:
        expected: Those of the trained model.
        found: Those of the export.
        step: What was done with the export, for the message.

    Raises:
        ExportError: If it is above what rounding explains.
    """
    difference = float((expected - found).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ExportError(
            f"the export does not survive its round trip: {step}, its logits differ by {difference:.2e} "
            f"(allowed {allowed:.2e})"
        )
    return difference


def check_padding(logits: Tensor) -> None:
    """Check that rows have the logits in a padded batch that they have alone.

    Args:
        logits: As ``logits_of`` gives them.

    Raises:
        ExportError: If they have others: the padding token is not the one that the model was made for.
    """
    if len(logits) in (len(_LENGTHS), sum(_LENGTHS)):  # no padding token
        return
    alone, padded = logits.chunk(2)
    difference = float((alone - padded).abs().max())
    if not difference <= PADDING_TOLERANCE * max(1.0, float(alone.abs().max())):
        raise ExportError(
            f"rows in a padded batch and alone have logits that differ by {difference:.2e}: the tokenizer's "
            "padding token is not the one that the model was made for",
            "set pad_token_id in the backbone's config.json to the tokenizer's, and run the study anew",
        )
