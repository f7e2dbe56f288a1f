"""Who gets which client of a bounded number, and what becomes of those that go."""
