"""Drafts: tokens that may come next, guessed from text that is known, and whether it pays to compute them."""
