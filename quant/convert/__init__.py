"""Hugging Face folders and GGUF files to a plan of the GGUF file to be written."""
