"""The small networks inside optimizers, as pure functions over nested dicts."""
