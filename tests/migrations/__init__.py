"""The migrations: up, down, and nothing lost on the way."""
