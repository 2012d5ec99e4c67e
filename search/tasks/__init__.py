"""Tasks: rows of text become token ids and labels, rows of images pixels and labels.

| file | what it does |
|---|---|
| data_files, data_rows | reading files as they are written; splits and columns |
| images | finding and opening the images of rows |
| labels | from values to class numbers |
| task | `Task` and `Split`, tokenised; batches |
| types | what differs between task types: rows, loss, metrics |
| own_data, own_metric | rows and a metric of the user's own, by import path |
| data_summary | rows, classes and warnings, to be shown |
| checks | what makes data useless, and what makes its scores worth less than they look |
"""
