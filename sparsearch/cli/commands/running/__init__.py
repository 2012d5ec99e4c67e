"""Commands that look at a model, and that start, serve or end studies."""
