"""Heads and neurons that can be removed.

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
| heads, neurons | the options of each |
"""
