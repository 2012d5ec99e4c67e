"""The strategy ``linearised``: candidates are selected one after the other under a linear model of the outputs.

| file | what it does |
|---|---|
| strategy | `Linearised`, the strategy |
| joint | the order in which candidates are selected, from rows to the last one; start here |
| explained | which numbers of a row, or of its tokens, the model explains, and how they should change |
| directions | along which few directions each candidate's values move |
| recording | what each unit reads in a pass, and the gradient of what it writes |
| jacobian | how each row's outputs change along these directions, summed into least squares |
| forward_selection | groups of columns, one after the other, by the drop of held-out loss per byte |
"""
