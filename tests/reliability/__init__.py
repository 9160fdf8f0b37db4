"""The service as a real process, under load, killed, restarted: what was acknowledged stays, and nothing happens twice."""
