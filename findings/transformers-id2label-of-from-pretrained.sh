#!/usr/bin/env bash
# transformers 5.23.0: `id2label` read from JSON is mended by the config's constructor, not by `from_pretrained`.
#
# JSON has text keys only. `BertConfig(id2label={"0": "no"})` makes whole numbers of them. The same mapping given to
# `from_pretrained(folder, id2label=...)` stays as it is, so that `model.config.id2label[0]` is a KeyError, in a
# text-classification pipeline too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" -W ignore - "$folder/saved" <<'PY'
import json
import sys

import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

transformers.logging.set_verbosity_error()
BertForSequenceClassification(
    BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
).save_pretrained(sys.argv[1])
labels = json.loads(json.dumps({0: "no", 1: "yes"}))
seen = {
    "constructor": BertConfig(id2label=labels).id2label,
    "from_pretrained": AutoModelForSequenceClassification.from_pretrained(sys.argv[1], id2label=labels).config.id2label,
}
print("transformers", transformers.__version__)
print(*(f"{case}: {found}" for case, found in seen.items()), sep="\n")
assert seen == {
    "constructor": {0: "no", 1: "yes"},
    "from_pretrained": {"0": "no", "1": "yes"},
}, "the behaviour has changed"
PY
