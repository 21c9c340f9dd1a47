"""How soon AudioCraft has a model ready, and in how much memory: ``tests.bench.audiocraft``."""
