"""Bodies and errors as HTTP carries them."""
