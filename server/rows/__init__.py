"""Rows of files: read, asked about, journalled and written. Commands that work through a file stand on this room."""
