#!/usr/bin/env bash
# peft 0.21.0 with transformers 5.23.0: in a Mixtral or a Qwen3-MoE a pattern in `target_modules` is reduced to its last name.
#
# `target_modules` may be one regular expression of full names. In a dense Llama one that names the queries of layer 1
# attaches a LoRA there and nowhere else. In models of experts, whose adapters PEFT converts to the fused layout of
# transformers 5, the same pattern becomes {"q_proj"}: all layers get one, without a warning, and the config that is
# saved says so too. A list of full names, also of one, keeps its layers. So an adapter for a few layers of such a model
# trains and stores all of them unless its layers are written out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PY'
import peft
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3MoeConfig

SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64,
}
EXPERTS = {"num_experts_per_tok": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4, moe_intermediate_size=16),
}


def layers(config, target):
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=2, target_modules=target)
    )
    found = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return sorted(int(name.split("layers.")[1][0]) for name in found)


print("peft", peft.__version__, "transformers", transformers.__version__)
pattern, written = r".*\.layers\.1\.self_attn\.q_proj", ["model.layers.1.self_attn.q_proj"]
found = {name: (layers(config, pattern), layers(config, written)) for name, config in CONFIGS.items()}
for name, (by_pattern, by_name) in found.items():
    print(f"{name}: layers by pattern {by_pattern}, by full name {by_name}")
assert found == {
    "llama": ([1], [1]), "mixtral": ([0, 1], [1]), "qwen3_moe": ([0, 1], [1])
}, "the behaviour has changed"
PY
