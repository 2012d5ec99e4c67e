"""The section ``task`` of a study file.

| file | what it holds |
|---|---|
| types | the table of task types: what is known of each before anything heavy is imported |
| imports | code of the user's own, by its import path |
| data | `DataConfig`: where the rows are |
| task | `TaskConfig`: type, columns, labels and metric |
"""
