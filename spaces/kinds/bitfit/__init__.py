"""Trained biases (BitFit).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
