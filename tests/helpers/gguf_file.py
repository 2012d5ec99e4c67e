"""A tiny language model in a GGUF file, its matrices in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, set_seed
from transformers.convert_slow_tokenizer import bytes_to_unicode

NAME = "tiny-Q8_0.gguf"
TOKENS = [*bytes_to_unicode().values(), "he", "<|endoftext|>"]


def write_gguf(folder: Path) -> Any:
    """Write the file; gives the model that it holds, with the weights as the file rounds them."""
    end = len(TOKENS) - 1
    config = Qwen2Config(
        vocab_size=len(TOKENS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64, eos_token_id=end,
        pad_token_id=end,
    )  # fmt: skip
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(folder / NAME, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * end + [3])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in model.state_dict().items():
        stored, kind = tensor.numpy(), None
        if tensor.dim() == 2:
            stored, kind = gguf.quants.quantize(stored, eight), eight
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(stored, eight)))
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
