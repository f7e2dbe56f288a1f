"""Time, locks, threads and forks: what everything else stands on. Nothing here knows what mail is."""
