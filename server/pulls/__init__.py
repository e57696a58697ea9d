"""Models on their way in: jobs that clients follow, and the puller process that does their work."""
