"""lm's own routes, and single routes of other dialects."""
