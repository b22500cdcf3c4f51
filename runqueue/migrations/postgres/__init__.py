"""The steps of a PostgreSQL schema."""
