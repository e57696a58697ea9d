"""Where models come from: local folders, a hub."""
