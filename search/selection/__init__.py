"""From scores to a structure: what fits the budget.

| file | what it does |
|---|---|
| selector | `Selector`: greedy, by density or by knapsack, under several limits |
| caps, infeasible | what a budget leaves; why nothing fits |
| masks | how many weights masks have to remove, and where |
"""
