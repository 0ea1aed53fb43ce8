"""Tools on files of finished adapters: resize, merge, inspect. No base model is needed, and none is read."""
