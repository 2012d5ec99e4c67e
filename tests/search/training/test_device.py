"""How a forward pass is computed on this machine."""

from __future__ import annotations

import pytest
import torch

from sparsearch.search.training.device import attention_for
from sparsearch.search.training.evaluate import forward


def test_plain_attention_gives_the_logits_of_the_fused_one(build, family, inputs):
    """And the model's own choice is back after the pass, whatever the family."""
    model = build(family, labels=3).eval()
    chosen = model.config._attn_implementation
    with torch.no_grad():
        found = forward(model, inputs, "bf16")
        assert model.config._attn_implementation == chosen
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = model(**inputs).logits.float()
    assert torch.allclose(found, expected, atol=0.02)


@pytest.mark.parametrize(
    ("tokens", "precision", "found"),
    [(128, "bf16", "eager"), (129, "bf16", "sdpa"), (128, "fp32", "sdpa")],
)
def test_it_is_for_short_inputs_in_bf16(build, tokens, precision, found):
    model = build("bert")
    with attention_for(model, tokens, precision):
        assert model.config._attn_implementation == found
    assert model.config._attn_implementation == "sdpa"


def test_another_choice_of_attention_stays(build):
    model = build("bert")
    model.set_attn_implementation("eager")
    with pytest.raises(ZeroDivisionError), attention_for(model, 8, "bf16"):
        _ = 1 / 0
    assert model.config._attn_implementation == "eager"
