"""The six benchmarks under one protocol: what the files in ``tasks/vreason`` refer to."""
