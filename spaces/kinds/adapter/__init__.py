"""Bottleneck adapters, sequential and parallel (Houlsby et al., 2019).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
