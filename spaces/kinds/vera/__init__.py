"""Trained scalings of random matrices that are the same everywhere (VeRA).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
