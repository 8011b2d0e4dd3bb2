"""One training run on several processes."""
