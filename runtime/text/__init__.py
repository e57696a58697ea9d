"""Text to tokens and back: templates, tokenizers, stop strings. Imports nothing from llama.cpp."""
