"""What an answer may look like: grammars and JSON schemas, kept token by token with llguidance."""
