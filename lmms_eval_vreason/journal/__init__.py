"""What a run writes, one line a sample: its schema, files and summary."""
