"""Tiny random models with a tokenizer that reads any text. They learn little, in seconds.

python -m sparsearch.testing.tiny_model FOLDER --type classification
"""

from __future__ import annotations

import argparse

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

__all__ = ["TYPES", "save_tiny_model"]

TYPES = ("classification", "causal-lm")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_ALPHABET = (*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
_SIZES = {
    "vocab_size": len(_ALPHABET),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def save_tiny_model(folder: str, task_type: str = "classification") -> None:
    """Write a random model of two layers, 32 wide, that reads bytes: a BERT, or a Llama for ``causal-lm``.

    Raises:
        ValueError: If there is no tiny model of that type.

    >>> import tempfile
    >>> from transformers import AutoTokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tiny_model(folder)
    ...     AutoTokenizer.from_pretrained(folder).tokenize("Grüße")
    ['G', 'r', 'Ã', '¼', 'Ã', 'Ł', 'e']
    """
    if task_type not in TYPES:
        raise ValueError(f"no tiny model for {task_type!r}: choose {' or '.join(TYPES)}")
    set_seed(0)
    _tokenizer(task_type).save_pretrained(folder)
    if task_type == "causal-lm":
        LlamaForCausalLM(LlamaConfig(**_SIZES, bos_token_id=2, eos_token_id=3)).save_pretrained(
            folder
        )
    else:
        BertForSequenceClassification(BertConfig(**_SIZES)).save_pretrained(folder)


def _tokenizer(task_type: str) -> PreTrainedTokenizerFast:
    """One token a byte; rows of a classifier begin and end with BERT's tokens."""
    reads_bytes = Tokenizer(models.BPE({token: i for i, token in enumerate(_ALPHABET)}, []))
    reads_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reads_bytes.decoder = decoders.ByteLevel()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "attention_mask"]
    if task_type == "causal-lm":
        names |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    else:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        inputs.insert(1, "token_type_ids")
        reads_bytes.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=reads_bytes, model_max_length=512, model_input_names=inputs, **names
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny random model to a folder.")
    parser.add_argument("folder")
    parser.add_argument("--type", choices=TYPES, default=TYPES[0])
    asked = parser.parse_args()
    save_tiny_model(asked.folder, asked.type)
