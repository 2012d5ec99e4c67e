"""Strategies, one a file: each says how a study finds structures for its budgets.

| file | strategies |
|---|---|
| base | `Strategy`, what each of them is; `RankingContext`, what it is given |
| registry | finds one by its name (`sparsearch.config.registry` lists them), ranks by one |
| s3pet | `s3pet`: the bi-level search |
| probe | `probe`: gradients of untrained candidates |
| linearised | `linearised`: forward selection under a linear model |
| network_slimming, update_magnitude | `slimming` (EarlyBERT), `update-magnitude` (DSEE): they train, then remove |
| optimal_brain_surgeon | `surgeon`: what a removal costs |
| scoreless | `random`, `even`, `magnitude` |
| uniform | `lora`, `lora-qv`, `lora-mlp`, `lora-xs`, `vera`, `ia3`, `spectral`, `bitfit`, `lnfit`, `adapter` |
| references, transfer | `head`, `full`; `transfer` |
| supernet_start | where searches and probes start |
"""
