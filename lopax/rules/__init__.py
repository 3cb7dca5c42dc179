"""What rules are, told once for both frameworks: data, without JAX or torch."""
