"""Text to tokens and back: templates, tokenizers, stop strings. Imports nothing of llama.cpp."""
