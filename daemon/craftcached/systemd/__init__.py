"""What a service manager and its service say to each other: sockets in, states out, log records.

Small on purpose and of our own: sdnotify sends states and nothing else, and systemd-python is
built against libsystemd's headers, which a GPU node as a rule lacks. Without systemd, nothing
here does anything.
"""

from .activation import InheritedSockets
from .journal import JournalFormatter, JournalSocket, encode_record, is_journal
from .notify import Notifier

__all__ = [
    "InheritedSockets",
    "JournalFormatter",
    "JournalSocket",
    "Notifier",
    "encode_record",
    "is_journal",
]
