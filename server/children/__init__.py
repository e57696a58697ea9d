"""The life of a child process of the daemon."""
