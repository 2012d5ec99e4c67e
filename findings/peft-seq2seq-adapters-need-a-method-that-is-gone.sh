#!/usr/bin/env bash
# peft 0.21.0 with transformers 5.23.0: an adapter with task_type SEQ_2_SEQ_LM cannot be made on T5, nor loaded.
#
# `PeftModelForSeq2SeqLM` keeps the base model's `_prepare_encoder_decoder_kwargs_for_generation`, which transformers
# has no more: AttributeError. The same adapter without a task type works, and loads by `PeftModel.from_pretrained`
# or `AutoPeftModel`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

transformers.logging.set_verbosity_error()
model = T5ForConditionalGeneration(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
print(f"transformers {transformers.__version__}, peft {peft.__version__}")
config = LoraConfig(r=2, target_modules=["q"])
get_peft_model(model, config)
print("without a task type: an adapter")
try:
    get_peft_model(model, LoraConfig(r=2, target_modules=["q"], task_type=TaskType.SEQ_2_SEQ_LM))
    raise SystemExit("it works now")
except AttributeError as error:
    print(f"task_type=SEQ_2_SEQ_LM: {error}")
PY
