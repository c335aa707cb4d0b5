"""Coral-Reef: the system software of a tower of Edge TPUs that serves chat with AI personas."""

__version__ = "0.1.0"
