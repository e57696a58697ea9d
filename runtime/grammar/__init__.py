"""Grammars and JSON schemas that answers are held to, token by token, with llguidance."""
