"""The reference shop: one module for each participant, and the sagas that use them."""
