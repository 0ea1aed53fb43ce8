"""Floor 4: optimizers as declared chains of techniques."""
