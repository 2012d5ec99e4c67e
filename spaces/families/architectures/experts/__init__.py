"""Architectures whose feed-forward layers choose among experts."""
