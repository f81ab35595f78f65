"""Owns bytes on disk -> tf.data batches. Not: models."""
