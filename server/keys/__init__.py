"""Keys: the file of them, which the daemon reads, and which `lm key` writes whether the daemon runs or not."""
