#!/usr/bin/env bash
# peft 0.21.0: after LN tuning, `merge_and_unload()` leaves the task's head in its wrapper, so that a saved model loses it.
#
# The documentation says that `merge_and_unload` gives the base model back, to be used as a standalone model. With
# LNTuningConfig the norms are put back, but `classifier` stays a ModulesToSaveWrapper: `save_pretrained` writes
# `classifier.modules_to_save.default.weight`, and `from_pretrained` reads the folder with a head that is newly
# initialised: a warning, and random answers. Merging LoRA puts the head back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0
"$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import sys

import peft, transformers
from peft import LNTuningConfig, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

transformers.logging.set_verbosity_error()
SMALL = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
CONFIGS = {
    "LN tuning": LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]),
    "LoRA": LoraConfig(task_type="SEQ_CLS", target_modules=["query"]),
}
print("peft", peft.__version__, "transformers", transformers.__version__)
seen = {}
for name, config in CONFIGS.items():
    merged = get_peft_model(BertForSequenceClassification(BertConfig(**SMALL)), config).merge_and_unload()
    merged.save_pretrained(f"{sys.argv[1]}/{name}")
    _, report = BertForSequenceClassification.from_pretrained(f"{sys.argv[1]}/{name}", output_loading_info=True)
    seen[name] = type(merged.classifier).__name__, sorted(report["missing_keys"])
    print(f"{name}: the head is a {seen[name][0]}; newly initialised when loaded: {seen[name][1]}")
assert seen == {
    "LN tuning": ("ModulesToSaveWrapper", ["classifier.bias", "classifier.weight"]),
    "LoRA": ("Linear", []),
}, "the behaviour has changed"
PY
