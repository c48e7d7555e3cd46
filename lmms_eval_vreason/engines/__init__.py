"""What runs the method: one folder an engine."""
