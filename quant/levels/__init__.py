"""Levels: a type for each tensor, by name, by budget, or as published."""
