"""The S3PET search: gates and weights are trained in turn (He et al., 2022).

| file | what it does |
|---|---|
| search | `BilevelSearch`: the loop over steps, first and second order |
| supernet | the model with every candidate attached and gated |
| gradient_probe | gradients of untrained candidates on it |
| early_stopping | stops the search when the selection has settled |
| local_search | swaps after the search |
| estimate | what a search would need, from shapes alone |
| operations | what the operations of a pass cost on this machine |
"""
