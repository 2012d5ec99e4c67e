"""Tiny random models that read a source and write a target, with a tokenizer, as a user's local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import nn
from transformers import AutoModelForSeq2SeqLM, set_seed

from tests.helpers.families import CONFIGS
from tests.helpers.language_model import VOCAB, make_tokenizer

FAMILIES = ("t5", "bart", "mt5", "mbart")
END = 3


def ending_tokenizer() -> Any:
    """The tokenizer of whole words, which ends each text as T5's does."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", END)]
    )
    return tokenizer


def make_seq2seq(family: str, *, tied: bool = True) -> Any:
    """A tiny random model of the tokenizer's vocabulary; its decoder starts with the padding token.

    Output embeddings of its own (T5 v1.1, FLAN) stand in the file alone: the config of transformers says tied.
    """
    set_seed(0)
    config = CONFIGS[family]()
    settings = {"vocab_size": VOCAB, "eos_token_id": END, "pad_token_id": 0, "bos_token_id": 2}
    for name, value in {**settings, "decoder_start_token_id": 0}.items():
        setattr(config, name, value)
    config.scale_decoder_outputs = tied
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    if not tied:
        model.lm_head.weight = nn.Parameter(torch.randn(VOCAB, config.d_model) / 8)
    return model


def save_seq2seq(family: str, folder: Path, *, tied: bool = True) -> Path:
    """Model and tokenizer in a folder."""
    ending_tokenizer().save_pretrained(folder)
    make_seq2seq(family, tied=tied).save_pretrained(folder)
    return folder
