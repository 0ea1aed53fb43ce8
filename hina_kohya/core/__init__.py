"""Floor 2: the machine that runs chains of techniques over buckets of same-shape parameters."""
