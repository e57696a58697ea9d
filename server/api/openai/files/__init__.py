"""OpenAI's files: what clients upload for batches, and the results of these."""
