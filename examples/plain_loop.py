"""Train a structure that a search has found in a plain loop of PyTorch.

    python examples/plain_loop.py MODEL STRUCTURE TRAIN.jsonl OUT

MODEL is the structure's backbone, a hub id or a folder. STRUCTURE is the ``structure.json`` that ``sparsearch export``
writes. Each row of TRAIN.jsonl has a ``text`` and a ``label``. OUT becomes a folder that ``sparsearch.attach`` loads.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
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
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 50)
    loader = DataLoader(
        examples, batch_size=8, drop_last=True, collate_fn=DataCollatorWithPadding(tokenizer)
    )  # the rows are in random order already
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    model.train()
    for step in range(1, 51):
        for batch in itertools.islice(batches, 2):
            loss = model(**batch).loss
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    ss.save(model, structure, out)
    return model


if __name__ == "__main__":
    train(*sys.argv[1:5])
