"""What people look at: summaries of a study, comparisons with intervals, plots of structures and fronts.

| file | what it does |
|---|---|
| summary, comparison | a study's table; paired differences between strategies, with intervals |
| recommendation | the cheapest strategy that is not beaten |
| structure_map, grid | the heat map of a structure, and its cells |
| pareto_figure | the plot of a front |
| html | figures as pages that work offline |
"""
