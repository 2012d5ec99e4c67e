"""Families, one a file: where each keeps what can be attached to or removed."""
