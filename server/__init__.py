"""The daemon: HTTP, jobs, commits, and the pool of workers."""
