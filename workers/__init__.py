"""How a study runs.

| file or folder | what it does |
|---|---|
| study, plan | `run`; the trials and what makes two runs one study |
| preflight, preflight_summary | checks before anything is written; what they tell |
| driver, callbacks, resources | hands trials out and stores what comes back; who is told; what fits on a machine |
| trials | one trial, from its job to its outcome |
| execution | where trials run: in this process, or on Ray |
| scheduling | which trial is next |
"""
