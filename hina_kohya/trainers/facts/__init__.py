"""What trainers do, as data."""
