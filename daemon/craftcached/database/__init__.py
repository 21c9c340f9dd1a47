"""The daemon's own records, in SQLite on a local disk, never in the cache directory.

    database    reads and writes them
    rows        what is remembered, as values
    schema      the tables and their version

Losing them loses no model: what is cached is decided by the files alone. The tables hold the warms
that were acknowledged and are not done yet, the pinned and held models, the time of each model's
last use, what each user had fetched on the day, the watched directories, and why models are not
warm.
"""

from .database import Database
from .rows import Hashing, Hold, Pin, WarmJob
from .schema import check_version

__all__ = ["Database", "Hashing", "Hold", "Pin", "WarmJob", "check_version"]
