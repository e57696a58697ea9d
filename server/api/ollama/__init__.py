"""Ollama's dialect: routes under `/api/`."""
