"""Task types: how rows become tensors, what the loss is, and how a model is judged. One file each.

| file | what it holds |
|---|---|
| base | `TaskType`: what a type must say |
| registry | `find_task_type`: a type by its name |
| sequence | what types share whose rows have one label each |
| classification, regression | one class, or one number, for a row of text |
| multiple_choice | which of several texts belongs to a context |
| multi_label | any number of classes for a row of text |
| images | classes of images |
| token_rows | rows whose tokens have a label each |
| question_answering, answers | where in a text an answer stands |
| token_classification | a tag for each word |
| language | what writes text: language models, sequence to sequence |

Columns, metrics and model class of each are in `sparsearch/config/tasks/types.py`.
"""
