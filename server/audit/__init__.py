"""The audit log: who did what with this box, line by line, each chained to the line before it."""
