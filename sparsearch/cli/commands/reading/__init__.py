"""Commands that ask a database, and hand over what is in it."""
