"""The reference shop: one participant a file, and the sagas that they take part in."""
