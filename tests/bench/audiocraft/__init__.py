"""How soon AudioCraft has a model ready, and in how much memory: ``python -m bench.audiocraft``."""
