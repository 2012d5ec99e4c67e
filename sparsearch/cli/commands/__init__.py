"""The commands, one file each: ``running`` starts or ends work, ``reading`` asks the database."""
