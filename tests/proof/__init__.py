"""The race proof: reproduce the race on the raw client, show its absence on ours, and notice both."""
