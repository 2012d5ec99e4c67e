"""Low-rank adapters on hidden states.

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
