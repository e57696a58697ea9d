"""The daemon watched while it works: memory second by second, recent requests, doctor's findings."""
