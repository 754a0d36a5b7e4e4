"""Exchange to table, JSON lines, recording."""
