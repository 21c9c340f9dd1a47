"""Examines an installation: what is right, what is not, and what to do about it.

Every check looks at one thing, changes nothing and never raises: what stands in its way is its
finding.
"""

from .examine import examine
from .finding import Finding

__all__ = ["Finding", "examine"]
