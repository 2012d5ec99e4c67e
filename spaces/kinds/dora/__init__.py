"""Weight-decomposed low-rank updates (DoRA).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
