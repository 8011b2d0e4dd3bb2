"""Labels of every common kind, on the grid of a cube."""
