"""Passwords, one-time codes and tokens."""
