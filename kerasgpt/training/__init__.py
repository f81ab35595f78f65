"""Owns training: a stage builds data, compiles, trains, returns a result."""
