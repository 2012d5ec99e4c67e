"""Sparse updates of a weight (DSEE).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
| supports | where an update may be other than zero |
"""
