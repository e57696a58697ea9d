"""HTTP: requests, retries, parallel ranges, digests checked."""
