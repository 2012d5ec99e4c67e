"""Adapters whose matrices are sums of Kronecker products (Compacter).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
