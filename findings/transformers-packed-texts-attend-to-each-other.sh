#!/usr/bin/env bash
# transformers 5.23.0: `position_ids` that begin anew keep packed texts apart in some models, and with a cache in none.
#
# Two texts in one row, with positions 0 1 2 0 1 2 3 and no attention mask: Llama and GPT-2 build a mask from the
# positions, so that the second text has the logits that it has alone, if `use_cache=False`. With the default
# `use_cache=True` no such mask is made, and the second text attends to the first. OPT, BLOOM and Falcon never make
# one: there texts mix whatever the cache. Nothing is said in either case.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
)

transformers.logging.set_verbosity_error()
SMALL = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=32),
    "gpt2": GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "opt": OPTConfig(**SMALL, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=16),
    "bloom": BloomConfig(vocab_size=30, hidden_size=16, n_layer=2, n_head=2),
    "falcon": FalconConfig(**SMALL, alibi=False),
}
KEPT_APART = {"llama", "gpt2"}
first, second = torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7, 8, 9]])
packed = torch.cat([first, second], dim=1)
positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
print(f"transformers {transformers.__version__}")
for name, config in CONFIGS.items():
    torch.manual_seed(0)
    config.initializer_range = 0.5
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        alone = model(second).logits
        without, cached = (
            float((model(packed, position_ids=positions, use_cache=c).logits[:, 3:] - alone).abs().max())
            for c in (False, True)
        )
    print(f"{name}: logits of the second text are off by {without:.1e} without a cache, {cached:.1e} with one")
    assert (without < 1e-5) == (name in KEPT_APART) and cached > 0.1
PY
