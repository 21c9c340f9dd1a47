"""Services of GPUs for tests: on a GPU, or on memory files in its place; and their workers."""
