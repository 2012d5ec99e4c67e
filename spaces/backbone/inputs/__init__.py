"""What models read: text through a tokenizer, images through an image processor.

| file | what it does |
|---|---|
| readers | what differs between the two: loading, checks, tokens of a row, what exports keep |
| samples | made-up inputs of a model, by the name of its main input |
"""
