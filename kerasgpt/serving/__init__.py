"""Owns the model outside training."""
