"""Gates: from one real number a candidate to the probability that it is selected.

| file | what it does |
|---|---|
| gates | relaxed Bernoulli samples of all candidates under the budget |
| mask_costs, idle | what masks are expected to cost; modules whose gates are shut |
| shift | the shifted global sigmoid: the shift that meets a budget, and its gradient |
"""
