"""The table of routes, one file for each dialect. Router, access, pages and tests read it alone."""
