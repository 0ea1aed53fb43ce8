"""Optimizers stepped on a GPU that is not there: devices, waits, launches and bytes are real, values are not."""
