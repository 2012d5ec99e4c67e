"""Who runs a study: runners, trials, and the loop over budgets, seeds and baselines."""
