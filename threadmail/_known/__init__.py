"""What a process remembers of a server, for all that share a config."""
