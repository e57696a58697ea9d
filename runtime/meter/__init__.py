"""How far a model's next-token probabilities are from a reference's, over windows of text, with standard errors."""
