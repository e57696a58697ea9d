"""The streaming pass: weights come in once and leave as a finished GGUF file."""
