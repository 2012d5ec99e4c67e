"""Configuration: what a study file may say, checked before anything runs.

| file | what it does |
|---|---|
| study | `StudyConfig`, the whole file |
| search, train, budgets, outer | its sections |
| tasks | the section `task`, and the table of task types |
| formats | what a structure can be exported to |
| presets | the recipes of the four papers |
| reader | study files, `--set` overrides |
| fields, problems | field types; error messages that name the key |
"""
