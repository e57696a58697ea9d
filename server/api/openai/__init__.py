"""OpenAI's dialect: routes under `/v1/`."""
