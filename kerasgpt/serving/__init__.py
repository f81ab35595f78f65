"""Owns the model outside training."""

from kerasgpt.serving.saved_model import ServingModule, export_saved_model

__all__ = ["ServingModule", "export_saved_model"]
