"""Train a structure that a search has found in the Trainer of transformers.

    python examples/train_with_trainer.py MODEL STRUCTURE TRAIN.jsonl OUT

MODEL is the structure's backbone, a hub id or a folder. STRUCTURE is the ``structure.json`` that ``sparsearch export``
writes. Each row of TRAIN.jsonl has a ``text`` and a ``label``. OUT becomes a folder that ``sparsearch.attach`` loads.
"""

import json
import sys
import tempfile
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import sparsearch as ss


def train(model_path: str, structure_file: str, rows_file: str, out: str) -> PreTrainedModel:
    """Fifty steps of 16 rows, in two halves each; the trained model, which is also saved."""
    set_seed(0)
    rows = [json.loads(line) for line in Path(rows_file).read_text().splitlines()]
    classes = sorted({str(row["label"]) for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    examples = [
        {
            **tokenizer(row["text"], truncation=True, max_length=48),
            "labels": classes.index(str(row["label"])),
        }
        for row in rows
    ]
    config = AutoConfig.from_pretrained(model_path, id2label=dict(enumerate(classes)))
    for name in [name for name in vars(config) if "drop" in name]:
        setattr(config, name, 0.0)  # few trained parameters do not overfit
    model = AutoModelForSequenceClassification.from_pretrained(
        model_path, config=config, ignore_mismatched_sizes=True
    )  # a head for other classes is drawn anew
    structure = ss.Structure.load(structure_file)
    ss.attach(model, structure)  # its modules and the head train from here on, nothing else
    model.accepts_loss_kwargs = False  # a classifier's loss is a mean: halves are averaged
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=50,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            train_sampling_strategy="sequential",  # the rows are in random order already
            dataloader_drop_last=True,
            report_to="none",
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=examples, processing_class=tokenizer)
        print(trainer.train())
    ss.save(model, structure, out)
    return model


if __name__ == "__main__":
    train(*sys.argv[1:5])
