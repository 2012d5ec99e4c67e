"""Making the model smaller for good.

| file | what it does |
|---|---|
| merge | folds attached modules into the backbone's weights |
| remove | removes heads and neurons from the weights |
| compact | `compact`: both |
| sparsity | how many weights are zero |
| checkpoint, checkpoint_document | the slim model's folder, written and read; what its `checkpoint.json` says |
"""
