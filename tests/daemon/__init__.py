"""The daemon from outside: its HTTP interface, its cache directory, its life, its failures."""
