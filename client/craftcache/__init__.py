"""One verified, hot copy of every AudioCraft checkpoint per GPU node."""
