"""What can be chosen in a model, what it costs, and how it is attached or removed.

| file or folder | what it does |
|---|---|
| families, backbone | where an architecture has what; the pretrained model and its identity |
| kinds | what can be attached, removed or masked |
| space, candidate, costs, conflicts | all that may be chosen, and what it costs, alone and together |
| budget, limits | what a structure may cost, and the table of what can be limited |
| ranking, structure | scores of candidates; what was chosen, as a file |
| attachment, calibration, compaction | attaching; learning from data before training; making the model smaller |
| presets | the recipes of the four papers |
"""
