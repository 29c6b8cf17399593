"""How the shop runs."""
