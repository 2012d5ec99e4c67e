"""One trial, from its job to its outcome.

| file | what it does |
|---|---|
| execute | ranks, selects, trains and measures |
| ranking_key | which trials may share a ranking |
| session | the model and task that a process keeps from trial to trial |
| shared_cache | what trials of one machine share |
| train_structure | `sparsearch train`: a stored structure on a task |
| provenance | versions, machine and commit of an outcome |
"""
