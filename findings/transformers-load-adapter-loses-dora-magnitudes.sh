#!/usr/bin/env bash
# transformers 5.23.0 with peft 0.21.0: `model.load_adapter` does not load the magnitudes of a DoRA adapter.
#
# PEFT writes them as `...lora_magnitude_vector`, its layer holds them as `...lora_magnitude_vector.default.weight`.
# `PeftModel.from_pretrained` knows that; transformers' own `load_adapter` does not find the tensor, reports it as
# missing, leaves those of an untrained adapter in their place, and goes on. Logits are wrong, nothing is raised.
# A file that writes `...lora_magnitude_vector.weight` is read by both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
CONFIG = LlamaConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
)
torch.manual_seed(0)
LlamaForCausalLM(CONFIG).save_pretrained("base")
ids = torch.tensor([[3, 4, 5, 6]])


def base():
    return LlamaForCausalLM.from_pretrained("base").eval()


adapter = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
trained = get_peft_model(base(), adapter).eval()
with torch.no_grad():
    for name, parameter in trained.named_parameters():
        if "magnitude" in name:
            parameter.mul_(3.0)  # what training would do to it
    expected = trained(ids).logits
    trained.save_pretrained("adapter")
    by_peft = PeftModel.from_pretrained(base(), "adapter").eval()(ids).logits
    by_transformers = base()
    by_transformers.load_adapter("adapter")
    found = by_transformers(ids).logits
print(f"transformers {transformers.__version__}, peft {peft.__version__}")
print(
    f"largest difference of logits: PeftModel {(by_peft - expected).abs().max():.1e}, "
    f"load_adapter {(found - expected).abs().max():.1e}"
)
sizes = [
    float(next(p for n, p in model.named_parameters() if "magnitude" in n).norm())
    for model in (trained, by_transformers)
]
print(f"norm of the magnitudes: saved {sizes[0]:.3f}, after load_adapter {sizes[1]:.3f}")
assert torch.allclose(by_peft, expected, atol=1e-6)
assert (found - expected).abs().max() > 1e-4 and sizes[1] < 0.5 * sizes[0]
PY
