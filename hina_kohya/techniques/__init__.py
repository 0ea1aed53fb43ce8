"""Floor 2: one technique a file. They never import each other; `core.registry` finds them by being in this package."""
