"""Child sagas, inline: what they receive and give, how they fail, and how they are undone."""
