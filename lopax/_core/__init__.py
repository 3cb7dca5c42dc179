"""Protocols and small types that everything else leans on. Imports nothing above it."""
