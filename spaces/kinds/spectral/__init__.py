"""Updates along directions that a brief fine-tuning found.

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
