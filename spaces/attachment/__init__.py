"""Attaching a structure to a model, and taking it off again.

| file | what it does |
|---|---|
| attach, check | `attach` and `detach`; whether a structure belongs to a model |
| attachment, attached_unit | what hangs on the model: modules by position, with their gates |
| hooks, changed_weight, substitution | how they act on the forward pass, beside the hooks of others |
| elsewhere | modules whose parameters another library keeps elsewhere (FSDP, offloading) |
| weights_file | trained weights as safetensors |
"""
