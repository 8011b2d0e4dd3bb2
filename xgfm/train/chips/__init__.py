"""Training samples on disk, and from there to batches."""
