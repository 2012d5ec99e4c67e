"""The pretrained model: loading it, and what makes it the same one.

| file | what it does |
|---|---|
| loading, loading_lock, folder | config, weights and tokenizer, one model at a time; the folder that they are in |
| parameters | the parts of a model: backbone, head, positions, layers |
| identity | what makes two backbones the same one |
| tokens, flops | how many tokens it reads; FLOPs of the dense backbone |
| inputs | what differs between models of text and of images |
| fingerprint, legacy | hashes of weights; those of earlier versions |
| state, _states | wrapped, offloaded, quantised: what is refused, and the way out |
"""
