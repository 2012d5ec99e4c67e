"""Tiny random language models with a tokenizer and a chat template, as a user's local folder."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

WORDS = ("ask", "red", "blue", "two", "seven", "is", "the", "colour", "number", "yes", "no")
SPECIAL = ("[PAD]", "[UNK]", "[BEGIN]", "[END]", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} [END] {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
VOCAB = len(SPECIAL) + len(WORDS)
CONFIGS = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=24, n_embd=16, n_layer=2, n_head=2, eos_token_id=3
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        vocab_size=VOCAB,
        max_position_embeddings=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    ),
}
"""Llama's output embeddings are its own, those of the others are tied to the input's; Gemma's layers are unlike."""


def make_tokenizer(*, begins: bool = False, **changes: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; ``begins`` says whether it puts its token of begin before a text."""
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        words.post_processor = processors.TemplateProcessing(
            single="[BEGIN] $A", special_tokens=[("[BEGIN]", 2)]
        )
    named = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "bos_token": "[BEGIN]",
        "eos_token": "[END]",
    }
    found = PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=1000,
        model_input_names=["input_ids", "attention_mask"],
        **named | changes,
    )
    found.chat_template = TEMPLATE
    return found


def make_language_model(family: str) -> Any:
    """A tiny random model of ``CONFIGS``."""
    set_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def save_language_model(family: str, folder: Path) -> Path:
    """Model and tokenizer in a folder."""
    make_tokenizer(begins=family != "gpt2").save_pretrained(folder)
    make_language_model(family).save_pretrained(folder)
    return folder


def write_rows(folder: Path, splits: dict[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """JSON lines for each split; gives the section ``data``."""
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": "json", "data_files": {s: str(folder / f"{s}.jsonl") for s in splits}}


def prompts(rows: int, seed: int) -> list[dict[str, Any]]:
    """Questions whose answer a model can learn: a colour is red, a number seven."""
    stream = random.Random(seed)
    answers = {"colour": "red", "number": "seven"}
    asked = [stream.choice(list(answers)) for _ in range(rows)]
    return [
        {"question": f"ask {'the ' * stream.randrange(3)}{what}", "answer": f"is {answers[what]}"}
        for what in asked
    ]
