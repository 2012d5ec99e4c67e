"""Queries: each takes a session and returns records."""
