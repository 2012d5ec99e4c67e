"""How a structure is chosen: supernet, gates, budget, bi-level search, strategies, cut, training."""
