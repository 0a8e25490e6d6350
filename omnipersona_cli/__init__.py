"""Teach unified multimodal models a person, a pet or a thing."""

__version__ = "0.1.0"
