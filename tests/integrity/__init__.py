"""What the cache directory promises whoever reads it, whatever was done to it by other hands."""
