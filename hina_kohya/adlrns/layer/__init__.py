"""The layer of its own: a network of any kind compressed into layers whose rank depends on the input."""
