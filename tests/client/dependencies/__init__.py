"""What a model needs beyond its files: found, brought, shown, kept and removed with it."""
