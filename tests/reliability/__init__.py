"""What a sender is trusted for: outcomes, deadlines and ends under every fault."""
