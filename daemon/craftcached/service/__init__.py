"""What the daemon does, whichever socket it is asked on.

service      answers requests, and has the rest as its parts
loads        files of published models, opened for workers
warms        warms that are waited for, queued or planned
inventory    the models and the daemon's state, as they are reported
"""

from .service import Asker, Service, ServiceParts

__all__ = ["Asker", "Service", "ServiceParts"]
