"""What a model family is made of: one line a family."""
