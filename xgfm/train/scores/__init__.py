"""How good, and how sure, a model is."""
