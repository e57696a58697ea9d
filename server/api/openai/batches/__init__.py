"""OpenAI's batches: files of requests, worked off while nobody else asks."""
