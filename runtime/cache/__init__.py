"""Which sequence holds which tokens of the KV cache."""
