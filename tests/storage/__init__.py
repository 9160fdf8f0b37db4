"""The keeper of the records: constraints and triggers really refuse."""
