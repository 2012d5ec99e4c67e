"""A search inside the Trainer of transformers.

| file | what it does |
|---|---|
| callback | `StructureCallback`: searches when training begins, attaches what it chose, and training goes on |
| rows | the Trainer's training rows as a task that a search reads |
"""
