"""The models: records (`spec`, `registry`), weights (`checkpoint`), torch modules, and handles to them."""
