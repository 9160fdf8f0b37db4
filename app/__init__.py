"""snose: sequentially numbered, opaque, sealed envelopes for clinical trials."""
