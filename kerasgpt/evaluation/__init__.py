"""Owns numbers that may be quoted."""
