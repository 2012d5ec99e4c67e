"""Plug-ins of one's own: each is a file here and a line in pyproject.toml."""
