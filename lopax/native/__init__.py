"""The C core of element networks, its tables, and how frameworks come to call it."""
