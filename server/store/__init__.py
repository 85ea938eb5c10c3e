"""What outlives the process: keys, files and batches, in SQLite or PostgreSQL."""
