"""Trained norms (LNFit).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
