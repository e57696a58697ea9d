"""Models in memory: one worker process each."""
