"""The service: its units, its machines with a real systemd, and what they are set up with."""
