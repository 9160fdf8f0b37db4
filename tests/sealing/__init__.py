"""Keys, sealed values and signatures: what must open opens, and nothing else does."""
