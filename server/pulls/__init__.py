"""Models on their way in: jobs, and the puller process."""
