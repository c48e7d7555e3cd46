"""Frames from files, and the reader that runs ahead."""
