"""Which level of a model fits this machine: the adviser process."""
