"""Which level of a model fits this machine: the adviser process, and the daemon's question to it."""
