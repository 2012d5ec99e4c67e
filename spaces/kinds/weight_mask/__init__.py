"""Pruned weights (PST).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
| masking | masks, packed bits, gradients through a mask |
"""
