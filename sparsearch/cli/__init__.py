"""The command line: a file for each command, with the table that it shows.

| file | what it does |
|---|---|
| main | the program: `sparsearch COMMAND` |
| commands | one command a file: what it asks, does and shows |
| options, console, progress | shared options; where text goes; bars |
| tables, preflight_view, study_view | what several commands show |
"""
