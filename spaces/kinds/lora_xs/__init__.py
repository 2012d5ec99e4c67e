"""Trained cores between singular directions of the weight (LoRA-XS).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
