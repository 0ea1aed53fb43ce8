"""What is wrong with a training TOML, told before a model is loaded."""
