"""Train a structure that a search has found in Lightning's Trainer.

    python examples/train_with_lightning.py MODEL STRUCTURE TRAIN.jsonl OUT

MODEL is the structure's backbone, a hub id or a folder. STRUCTURE is the ``structure.json`` that ``sparsearch export``
writes. Each row of TRAIN.jsonl has a ``text`` and a ``label``. OUT becomes a folder that ``sparsearch.attach`` loads.
Needs Lightning (``pip install lightning``).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
    set_seed,
)

import sparsearch as ss


class Classifier(lightning.LightningModule):
    """A model with a structure attached, whose modules and head are all that trains."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        """The model's own loss."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, its rate falling to 0 over all steps."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, 50)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


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
    loader = DataLoader(
        examples, batch_size=8, drop_last=True, collate_fn=DataCollatorWithPadding(tokenizer)
    )  # the rows are in random order already
    model.train()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=50,
            max_epochs=-1,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(model), loader)
    ss.save(model, structure, out)
    return model


if __name__ == "__main__":
    train(*sys.argv[1:5])
