"""Keeper of the records: every table and every SQL statement."""
