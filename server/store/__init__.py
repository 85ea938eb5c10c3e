"""The data that outlives the process: keys, files and batches, in SQLite or PostgreSQL."""
