"""The database: its tables, and every statement that reads or writes them.

| file | what it does |
|---|---|
| store | `Store`: what the rest of the program may ask and tell; one method, one transaction |
| reader | the half of it that asks |
| reading | queries: lists, the best structures, advice where there is no answer |
| pareto_front | who enters the front when a trial ends, and the front itself |
| writing | statements that write: studies, trials and outcomes, attempts, the lease, growth |
| connection | opening a database, safely for its kind |
| tables, migrations | the schema, and how older databases reach it |
| copying | backups: a whole database copied into another, and checked |
| task_identity | what makes two tasks one |
"""
