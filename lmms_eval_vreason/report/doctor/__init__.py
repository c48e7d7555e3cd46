"""What in a run would make its numbers differ from others': evidence, checks, one page."""
