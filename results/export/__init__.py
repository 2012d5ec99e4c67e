"""What is written for others: a structure with its weights as a spec, a PEFT adapter or a slim checkpoint.

| file | what it does |
|---|---|
| export | `export`: writes one of the formats, and tries it as its user will |
| round_to_budget | fewer bits for the values of a trained structure, until it costs so many bytes |
| trained | the trained structure that is exported: its weights, its task, its base |
| peft, peft_model, peft_folder, peft_readme | how PEFT says it; the adapter's folder and README |
| adapters | several PEFT adapters, and a LoRA for llama.cpp |
| checkpoint, serving | the slim model's folder; ONNX and torch files for serving |
| verify | the proof: loads what was written and compares logits |
| task_config, writing | the config of the task; folders that appear whole or not at all |
"""
