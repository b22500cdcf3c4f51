"""The steps of an SQLite schema."""
