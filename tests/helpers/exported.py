"""A trained structure on a tiny model on disk, without a study: what the export tests start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsearch.results.records import Best
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import pack_weights
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure

ROWS = (3, 9)


@dataclass
class TrainedCase:
    """What an export starts from, and what it must compute.

    Attributes:
        best: The trial.
        weights: Its trained weights.
        logits: Of ``padded_batch``, of the trained model.
        folder: The backbone's.
    """

    best: Best
    weights: bytes
    logits: Tensor
    folder: Path


def padded_batch(pad: int) -> dict[str, Tensor]:
    """Three rows, the second padded from its fifth token on; T5 finds its end in each."""
    ids = torch.randint(5, 24, ROWS, generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[:, -1] = ids[1, 4] = 1
    ids[1, 5:], mask[1, 5:] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    """Of the padded batch, with the padding token that the model's config names."""
    return model.eval()(**padded_batch(model.config.pad_token_id)).logits


def furthest(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest logit if that is above 1."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def train_on(
    folder: Path,
    kinds: dict[str, dict[str, object]],
    randomise: Callable[[nn.Module], None],
    classes: Sequence[str] = ("no", "perhaps", "yes"),
    pad: int | None = None,
) -> TrainedCase:
    """Attach every second candidate of a space to a saved model, with random weights.

    Args:
        folder: Of the model.
        kinds: Of the space.
        randomise: Moves the weights.
        classes: Of the task; none for regression.
        pad: The padding token of the training, as the tokenizer says; else the config's.
    """
    torch.manual_seed(0)  # of the head and of what LoRA starts from
    model = load_model(str(folder), num_labels=len(classes) or 1)
    model.config.pad_token_id = model.config.pad_token_id if pad is None else pad
    space = build_space(model, kinds=kinds)
    task = "classification" if classes else "regression"
    identity = identify(model, str(folder))
    structure = make_structure(space, space.candidates[::2], identity, task)
    attach(model, structure)
    randomise(model)
    weights = pack_weights(model, list(classes))
    best = Best(
        "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, structure.trainable_params, 1, 1.0,
        None, 0, str(folder), "t", structure.stored_bytes,
    )  # fmt: skip
    return TrainedCase(best, weights, logits_of(model), folder)
