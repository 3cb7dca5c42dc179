"""Making results: a run, a grid of them, here or elsewhere, and their store."""
