"""Statements that write: each takes a session inside a transaction that its caller ends."""
