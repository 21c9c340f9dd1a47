"""The fetch engine, against the test hub."""
