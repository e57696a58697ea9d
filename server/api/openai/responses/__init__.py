"""OpenAI's API of responses: bodies, items, events, and the store of responses."""
