"""Virtual tokens that the heads of an attention see (prefix tuning, with a softmax of their own).

| file | what it holds |
|---|---|
| spec | options and costs |
| module | what it computes |
"""
