"""Low-rank updates, rank unit by rank unit (LoRA).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
