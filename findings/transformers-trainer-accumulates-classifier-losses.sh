#!/usr/bin/env bash
# transformers 5.23.0: with gradient_accumulation_steps, the Trainer does not divide a classifier's loss.
#
# `Trainer` leaves the division by the accumulation steps to models whose forward takes `**kwargs`: it hands them
# `num_items_in_batch`, by which a language model's loss is divided. A BERT classifier takes `**kwargs` too, and its
# loss ignores that number. So two accumulated halves of a batch give the sum of their losses: the logged loss and the
# gradient are twice those of the same rows in one batch. With clipping and Adam a training looks almost right.
# `model.accepts_loss_kwargs = False` brings the division back.
# One step of plain SGD on the same two rows, without dropout, shows it as the ratio of the change of the weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import copy

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
transformers.set_seed(0)
CONFIG = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
MODEL = BertForSequenceClassification(CONFIG)
ROWS = [{"input_ids": torch.tensor([2, i + 5, 3]), "labels": i} for i in range(2)]


def change(rows, steps, flag=None):
    """How far one optimiser step over both rows moves the classifier's weights, and the logged loss."""
    model = copy.deepcopy(MODEL)
    if flag is not None:
        model.accepts_loss_kwargs = flag
    arguments = TrainingArguments(
        "out", per_device_train_batch_size=rows, gradient_accumulation_steps=steps, max_steps=1, learning_rate=0.1,
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )
    found = Trainer(model, arguments, train_dataset=ROWS).train()
    moved = model.classifier.weight - MODEL.classifier.weight
    return float(moved.norm()), found.training_loss


whole, halves, divided = change(2, 1), change(1, 2), change(1, 2, flag=False)
print(f"transformers {transformers.__version__}")
print(f"logged loss: one batch {whole[1]:.4f}, two halves {halves[1]:.4f}, with the flag {divided[1]:.4f}")
print(f"weights move: two halves {halves[0] / whole[0]:.2f} times one batch, with the flag {divided[0] / whole[0]:.2f}")
assert abs(halves[0] / whole[0] - 2) < 0.01 and abs(halves[1] / whole[1] - 2) < 0.01
assert abs(divided[0] / whole[0] - 1) < 0.01 and abs(divided[1] / whole[1] - 1) < 0.01
PY
