"""`lm verify --oracle`: a model of the store against transformers, which runs its original weights."""
