"""Routes of lm's own, and of dialects with one route."""
