"""Long runs: real time, real threads. Each prints its seed or its bounds, and how to run it again."""
