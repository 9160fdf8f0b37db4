"""Keeper of the credentials: passwords, one-time codes, tokens."""
