"""Keeper of the secrets: envelopes, key ring, key providers, signing."""
