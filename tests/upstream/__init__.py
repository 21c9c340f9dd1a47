"""AudioCraft itself, unmodified, in an environment of its own: what it needs, it gets from here."""
