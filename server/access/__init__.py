"""Who may ask, over which connections."""
