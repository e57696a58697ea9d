"""The parts of an answer, told apart while it comes: text, thinking and calls of tools."""
