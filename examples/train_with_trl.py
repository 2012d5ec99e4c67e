"""Train a structure that a search has found on a language model in TRL's SFTTrainer.

    python examples/train_with_trl.py MODEL STRUCTURE TRAIN.jsonl OUT

MODEL is the structure's backbone, a hub id or a folder. STRUCTURE is the ``structure.json`` that ``sparsearch export``
writes. Each row of TRAIN.jsonl has a ``prompt`` and a ``completion``, which alone is learnt. OUT becomes a folder that
``sparsearch.attach`` loads. Needs TRL (``pip install trl``).
"""

import sys
import tempfile

import datasets
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

import sparsearch as ss


def train(model_path: str, structure_file: str, rows_file: str, out: str) -> PreTrainedModel:
    """Fifty steps of 16 rows, in two halves each; the trained model, which is also saved."""
    set_seed(0)
    config = AutoConfig.from_pretrained(model_path)
    for name in [name for name in vars(config) if "drop" in name]:
        setattr(config, name, 0.0)  # few trained parameters do not overfit
    model = AutoModelForCausalLM.from_pretrained(model_path, config=config, dtype="float32")
    structure = ss.Structure.load(structure_file)
    ss.attach(model, structure)  # its modules train from here on, nothing else
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=50,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            train_sampling_strategy="sequential",  # the rows are in random order already
            dataloader_drop_last=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
        )
        trainer = SFTTrainer(
            model,
            arguments,
            train_dataset=datasets.Dataset.from_json(rows_file, cache_dir=folder),
            processing_class=AutoTokenizer.from_pretrained(model_path),
        )
        print(trainer.train())
    ss.save(model, structure, out)
    return model


if __name__ == "__main__":
    train(*sys.argv[1:5])
