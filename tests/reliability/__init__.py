"""Nothing lost, nothing twice: every fault, every hostile server, every exit."""
