"""Formats and arithmetic of GGUF models: blocks, files, conversion, recipes, the streaming pass.

Covers everything between the bytes of a published model and a GGUF file. Knows nothing of networks, of the store, or of
the engine that runs the result; imports none of the other packages.
"""
