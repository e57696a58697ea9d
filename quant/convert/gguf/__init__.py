"""GGUF files as sources of a model."""
