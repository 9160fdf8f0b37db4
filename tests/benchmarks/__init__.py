"""Figures, never asserted as absolute times."""
