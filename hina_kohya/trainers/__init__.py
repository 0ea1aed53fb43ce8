"""What meets a trainer: hooks on its functions, networks, param groups by role; and what each trainer is, as data."""
