"""Fine-tuning: from a cube and labels to a task that predicts."""
