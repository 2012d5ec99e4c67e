"""How a structure is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sparsearch.config.fields import Number, Positive, Rate, Section
from sparsearch.config.registry import KINDS

__all__ = [
    "KIND_LR",
    "SAMPLE_ROWS",
    "START_BATCH",
    "TrainConfig",
]

SAMPLE_ROWS = 1024


START_BATCH = 32


KIND_LR = {
    "lora": 3e-3,
    "dora": 3e-3,
    "spectral": 3e-2,
    "prefix": 3e-2,
    "lora_xs": 5e-3,
    "bitfit": 5e-3,
    "adapter": 3e-3,
    "low_rank_adapter": 3e-3,
    "compacter": 3e-3,
    "weight_mask": 1e-3,
}
"""Rates of the kinds that want another one than biases and gains; see decision 1."""


def _with_default_rates(value: Any) -> Any:
    """Naming one kind's rate leaves the others at their defaults."""
    return {**KIND_LR, **value} if isinstance(value, Mapping) else value


class TrainConfig(Section):
    """How a structure is trained, the same for every strategy; a search trains its modules alike.

    Attributes:
        lr: For attached modules and the head.
        kind_lr: Kind (or ``head``) -> its own rate, over the defaults; other kinds take ``lr``.
        full_lr: For the reference that trains the whole backbone.
        clip_updates: Whether steps of attached modules are shortened where gradients outgrow what they have been
            (decision 61). A whole backbone trains without.
        warmup: Share of the steps with a rising learning rate; afterwards it falls linearly to 0.
        precision: ``auto`` takes bf16 autocast where the processor computes it natively.
        head_first: Whether the head learns alone, over the frozen backbone, before the rest joins.
        start_rows: Training rows of which a seed's warm start is made: its head, the directions that units take
            from the gradient, the moments by which cuts are priced.
        start_steps: Steps of a brief fine-tuning of all linears, on the training split, from whose changes units
            take their directions in the place of the gradient; 0 for the gradient. With ``backbone`` what it
            leaves is what is cut, and its steps are taken off the training that follows. It needs the memory of
            full fine-tuning.
        dropout: Whether the backbone's own dropout is on.
        backbone: Whether the backbone trains too, for structures that only cut: what is left of it is
            fine-tuned from its pretrained weights, as EarlyBERT does, or from what ``start_steps`` left of them.
        backbone_rank: With ``backbone``, the rank of the LoRA that trains on each of its linears in the place of their
            weights, and is then added to these (decision 64); without it all weights train.
        checkpointing: Whether layers keep their input alone for the backward pass and run again in it: less memory,
            more time.
        cache_bytes: Most memory for outputs of the frozen layers below all that trains, which then
            run once instead of in each epoch, and once for trials in a row with the same lowest layer; 0 runs
            them again. Needs dropout off.
    """

    epochs: Positive = 3
    batch_size: Positive = 32
    lr: Rate = 2e-2
    kind_lr: Annotated[dict[str, Rate], BeforeValidator(_with_default_rates)] = Field(
        default_factory=lambda: dict(KIND_LR)
    )
    full_lr: Rate = 1e-4
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.06
    clip: Annotated[Number, Field(gt=0)] = 2.0
    clip_updates: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    head_first: bool = False
    start_rows: Positive = SAMPLE_ROWS
    start_steps: Annotated[int, Field(ge=0)] = 0
    dropout: bool = False
    backbone: bool = False
    backbone_rank: Positive | None = None
    checkpointing: bool = False
    cache_bytes: Annotated[int, Field(ge=0)] = 2**30

    @property
    def steps_before_cut(self) -> int:
        """Steps of a brief fine-tuning before a ticket is cut from what it left."""
        return self.start_steps if self.backbone else 0

    @property
    def steps_taken(self) -> int:
        """Those steps in batches of the ticket's training."""
        return math.ceil(self.steps_before_cut * START_BATCH / self.batch_size)

    @model_validator(mode="after")
    def _rank_of_a_backbone(self) -> TrainConfig:
        if self.backbone_rank is not None and not self.backbone:
            raise ValueError("backbone_rank is of a backbone that trains: set backbone: true too")
        return self

    @model_validator(mode="after")
    def _known_kinds(self) -> TrainConfig:
        others = self.kind_lr.keys() - KIND_LR.keys()
        # Plug-ins are looked up only if a kind without a default rate is named.
        if others and (unknown := sorted(others - {*KINDS, "head"})):
            raise ValueError(f"kind_lr names {unknown}; known: {', '.join((*KINDS, 'head'))}")
        return self
