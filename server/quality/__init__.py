"""How good is a model? Its next-token probabilities beside its source's, and the card that keeps the answer."""
