"""From what a caller has to checked bytes that are ready for the wire. Nothing here knows a server."""
