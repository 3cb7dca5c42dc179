"""Fused execution of per-element rules; each is tied to its plain rule by a test."""
