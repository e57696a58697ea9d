"""The loop that answers all requests of one model together."""
