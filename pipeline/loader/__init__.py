"""The streaming loader: one global order, exact elastic resume."""
