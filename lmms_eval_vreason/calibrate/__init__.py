"""How strongly the method acts on a user's own model and task, and which setting to use. It needs no labels."""
