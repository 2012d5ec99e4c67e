"""Which trial is next.

| file | what it does |
|---|---|
| scheduler | trials in their planned order |
| early_stopper | stops proposals that do not keep up |
| optuna_scheduler, search_space, budget_baseline | proposals by Optuna; their space; what is usual at a budget |
| transfer | rankings of earlier studies |
"""
