"""Adapters in other forms than one of PEFT's.

| file | what it does |
|---|---|
| peft_set | several PEFT adapters, one for each type, that are loaded together |
| gguf_lora | a LoRA in a GGUF file, as llama.cpp reads it |
"""
