"""What training starts from: a task's record, its module, and which weights learn."""
