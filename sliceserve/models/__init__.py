"""The decoder for any range of layers, and its weights."""
