"""Many messages and many workers: what is decided, the one lock around it, and who is told."""
