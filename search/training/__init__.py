"""Training a structure, and what training and searching share.

| file | what it does |
|---|---|
| train, optimiser, evaluate | the training loop; rates and schedule; metrics |
| prefix | outputs of the frozen first layers, computed once |
| embedding_rows | the rows of the embedding that a task uses |
| warm_start | the brief fine-tuning that directions and heads come from |
| gradients, gradient_guard | gradients of candidates; NaN and infinity named |
| recomputing | layers that run again in the backward pass |
| device, seeds | where to compute; one seed for each purpose |
"""
