#!/usr/bin/env bash
# transformers 5.23.0: after `delete_adapter` the model says that it has no PEFT adapter, and saves a model that is not
# read back.
#
# `delete_adapter` of the last adapter sets `_hf_peft_config_loaded` to False, but leaves each adapted linear inside its
# PEFT layer. `save_pretrained` then takes the model for a plain one and writes `query.base_layer.weight`;
# `from_pretrained` finds no `query.weight`, warns, and initialises the pretrained linear anew.
# Expected: the linears come back, as PEFT's own `unload()` does it; or the flag stays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0
"$folder/venv/bin/python" -W ignore - "$folder/saved" <<'PY'
import sys

import peft, torch, transformers
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification

transformers.logging.set_verbosity_error()
model = BertForSequenceClassification(
    BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
)
before = model.bert.encoder.layer[0].attention.self.query.weight.clone()
model.add_adapter(LoraConfig(target_modules=["query"]), "mine")
model.delete_adapter("mine")
model.save_pretrained(sys.argv[1])
again, report = BertForSequenceClassification.from_pretrained(sys.argv[1], output_loading_info=True)
seen = {
    "says it has an adapter": model._hf_peft_config_loaded,
    "type of the adapted linear": type(model.bert.encoder.layer[0].attention.self.query).__module__.split(".")[0],
    "newly initialised when loaded": sorted(name.rpartition("self.")[2] for name in report["missing_keys"]),
    "pretrained weight is back": torch.equal(again.bert.encoder.layer[0].attention.self.query.weight, before),
}
print("peft", peft.__version__, "transformers", transformers.__version__)
print(*(f"{case}: {found}" for case, found in seen.items()), sep="\n")
assert seen == {
    "says it has an adapter": False,
    "type of the adapted linear": "peft",
    "newly initialised when loaded": ["query.bias", "query.weight"],
    "pretrained weight is back": False,
}, "the behaviour has changed"
PY
