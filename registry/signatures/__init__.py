"""Signatures of models in OpenSSF's form: files by name, statements, keys, and the layer that holds a signature."""
