"""The schema registry: what messages look like, and which changes of that nobody notices."""
