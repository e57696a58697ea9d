"""The search for the level of a model that meets a user's goals: pure rules, no measurement of its own."""
