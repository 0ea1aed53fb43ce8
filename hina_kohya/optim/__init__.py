"""Floor 3: optimizers as declared chains of techniques."""
