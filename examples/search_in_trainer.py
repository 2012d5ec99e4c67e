"""Search for a structure inside the Trainer of transformers, and go on training with it.

    python examples/search_in_trainer.py MODEL TRAIN.jsonl OUT

MODEL is a hub id or a folder. Each row of TRAIN.jsonl has a ``text`` and a ``label``. OUT becomes a folder that
``sparsearch.attach`` loads.
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


def train(
    model_path: str, rows_file: str, out: str, budget: str | int = "0.1%"
) -> PreTrainedModel:
    """A search of 60 steps, then a hundred steps of 16 rows; the trained model, which is also saved."""
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
    )
    callback = ss.StructureCallback(
        "classification", {"max_trainable_params": budget}, search={"steps": 60}
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=100,
            per_device_train_batch_size=16,
            learning_rate=2e-2,
            report_to="none",
            save_strategy="no",
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=examples,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        print(trainer.train())
    for candidate in callback.structure.candidates:
        print(f"{candidate.kind} at {candidate.position}: {candidate.params} parameters")
    ss.save(model, callback.structure, out)
    return model


if __name__ == "__main__":
    train(*sys.argv[1:4])
