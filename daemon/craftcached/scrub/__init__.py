"""The scrub: hashes cached files again, in the background and on demand, and mends them.

Begin with schedule (which file is due), then examiner (what is looked at, and what becomes of it).
"""

from .integrity import Integrity

__all__ = ["Integrity"]
