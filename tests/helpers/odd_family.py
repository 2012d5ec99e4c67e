"""A family that nobody has seen: odd names, odd settings, and parts that only torch knows how to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NAME = "oddball"


class OddConfig(PretrainedConfig):
    model_type = NAME

    def __init__(self, girth: int = 16, storeys: int = 2, glyphs: int = 40, **others: object):
        self.girth, self.storeys, self.glyphs = girth, storeys, glyphs
        super().__init__(**others)


class OddRMSNorm(nn.Module):
    def __init__(self, girth: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(girth)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Storey(nn.Module):
    def __init__(self, girth: int) -> None:
        super().__init__()
        self.calm, self.hush = nn.LayerNorm(girth), OddRMSNorm(girth)
        self.gaze = nn.MultiheadAttention(girth, 2, batch_first=True)
        self.mix, self.grow = nn.Linear(girth, girth), nn.Linear(girth, 2 * girth, bias=False)
        self.shrink = nn.Linear(2 * girth, girth)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        y = self.calm(x)
        x = x + self.mix(self.gaze(y, y, y, key_padding_mask=hidden, need_weights=False)[0])
        return x + self.shrink(self.grow(self.hush(x)).relu())


class OddTower(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "tower"

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.glyphs = nn.Embedding(config.glyphs, config.girth)
        self.portal = nn.Linear(config.girth, config.girth)
        self.storeys = nn.ModuleList(Storey(config.girth) for _ in range(config.storeys))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.portal(self.glyphs(input_ids))
        for storey in self.storeys:
            x = storey(x, attention_mask == 0)
        return x


class OddForSequenceClassification(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "tower"

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.tower, self.verdict = OddTower(config), nn.Linear(config.girth, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **others: object
    ) -> SequenceClassifierOutput:
        x = self.tower(input_ids, attention_mask)
        shares = attention_mask / attention_mask.sum(1, keepdim=True)
        return SequenceClassifierOutput(logits=self.verdict((x * shares[..., None]).sum(1)))


@contextmanager
def registered() -> Iterator[None]:
    """Transformers knows the family meanwhile."""
    models = AutoModelForSequenceClassification._model_mapping
    AutoConfig.register(NAME, OddConfig)
    AutoModelForSequenceClassification.register(OddConfig, OddForSequenceClassification)
    try:
        yield
    finally:
        CONFIG_MAPPING._extra_content.pop(NAME)
        models._extra_content.pop(OddConfig)
