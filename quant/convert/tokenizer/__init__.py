"""The files of a tokenizer to the vocabulary of a GGUF file, one module for each kind."""
