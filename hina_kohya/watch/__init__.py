"""What is seen of a training run: its curves, its adapter and its samples, on one page."""
