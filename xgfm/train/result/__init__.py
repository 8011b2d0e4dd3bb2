"""A finished run as a task that can be used, judged and passed on."""
