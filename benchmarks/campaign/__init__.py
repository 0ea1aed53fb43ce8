"""What the benchmarks of many runs share: they may be stopped at any point, and go on where they were."""
