"""Families of transformers: where in each of them something can be attached or removed.

| file | what it does |
|---|---|
| position | what a position is; finding one by its name |
| family, registry | what is declared of a family; the families that are known |
| scan | the positions of a model, by its family's table |
| generic | the same for a family that is not in the table, by type and shape |
| gguf | how llama.cpp names the families whose linears it keeps one by one |
| architectures | one family a file |
"""
