"""Adapters in other forms than one of PEFT's, and what one of experts consists of.

| file | what it does |
|---|---|
| peft_set | several PEFT adapters, one for each type, that are loaded together |
| peft_parameters | LoRA of experts and routers, which PEFT keeps parameter by parameter |
| gguf_lora | a LoRA in a GGUF file, as llama.cpp reads it |
"""
