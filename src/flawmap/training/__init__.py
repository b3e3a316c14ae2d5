"""Fitting: the loop, its optimisers, feature caches and checkpoints."""
