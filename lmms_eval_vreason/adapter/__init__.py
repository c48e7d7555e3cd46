"""Where lmms-eval meets the package: the model class, its options and the loading of a checkpoint."""
