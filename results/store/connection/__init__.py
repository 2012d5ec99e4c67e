"""Opening a database: SQLite with its own locks, PostgreSQL, and their URLs."""
