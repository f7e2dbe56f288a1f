"""One connection: found, dialled, encrypted; whole commands out, whole replies in, or closed."""
