"""Child processes of the daemon: both halves of a process with one task, and the log files."""
