"""llama-server's dialect: its own routes, and the routes of rerankers that its clients know."""
