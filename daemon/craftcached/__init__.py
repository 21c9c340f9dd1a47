"""The daemon: fetches, verifies, publishes and serves AudioCraft checkpoints."""
