"""Integrations with other libraries. Each needs the extra with its name."""
