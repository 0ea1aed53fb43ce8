"""Pairs without names: what gradients say about which parameters multiply each other."""
