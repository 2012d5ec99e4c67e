#!/usr/bin/env bash
# peft 0.21.0: IA3 with a classification head of several layers trains and saves, but does not merge.
#
# IA3 on attention keys and values of a RoBERTa sequence classifier. PEFT wraps the head (`classifier`, a module of
# two linears) as one of `modules_to_save`. `merge_and_unload()` then asks the wrapped head for a `weight`, as if it were
# one linear, and raises AttributeError. The same adapter on BERT, whose head is one linear, merges.
# Expected: the head is put in place, as merging LoRA does on both models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import peft, transformers
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

SMALL = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def outcome(model, config):
    try:
        get_peft_model(model, config).merge_and_unload()
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "merged"


def ia3():
    return IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[])


def lora():
    return LoraConfig(task_type="SEQ_CLS", target_modules=["key", "value"])


def bert():
    return BertForSequenceClassification(BertConfig(**SMALL))


def roberta():
    return RobertaForSequenceClassification(RobertaConfig(**SMALL))


print("peft", peft.__version__, "transformers", transformers.__version__)
seen = {
    "IA3, BERT": outcome(bert(), ia3()),
    "LoRA, RoBERTa": outcome(roberta(), lora()),
    "IA3, RoBERTa": outcome(roberta(), ia3()),
}
print(*(f"{case}: {found}" for case, found in seen.items()), sep="\n")
assert seen == {
    "IA3, BERT": "merged",
    "LoRA, RoBERTa": "merged",
    "IA3, RoBERTa": "AttributeError: 'RobertaClassificationHead' object has no attribute 'weight'",
}, "the behaviour has changed"
PY
