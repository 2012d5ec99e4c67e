"""Scaled activations (IA3).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
