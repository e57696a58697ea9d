"""Searches for scales and levels that several families share."""
