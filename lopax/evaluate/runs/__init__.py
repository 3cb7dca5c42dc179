"""Making results: one run, a grid of them, on this machine or elsewhere, and their store."""
