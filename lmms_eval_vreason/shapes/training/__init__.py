"""How the shapes checkpoint was trained, and how the method's settings were compared on it. Nothing else needs this."""
