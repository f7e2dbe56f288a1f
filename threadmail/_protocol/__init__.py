"""SMTP without I/O: what a transaction has come to."""
