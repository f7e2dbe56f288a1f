"""The synchronous mail sender that threads can share."""

__version__ = "0.1.0"
