"""What the daemon does, whichever socket it is asked on. From the outside inwards:

- ``service`` answers requests, and has the rest as its parts;
- ``loads`` opens files of published models for workers;
- ``warms`` carries out, queues and plans warms;
- ``warming`` does one warm as it is asked for: the source by ``craftcached.warm``, then what it
  needs, then what is to be in memory;
- ``inventory`` describes the models and the daemon.
"""

from .service import Asker, Service, ServiceParts

__all__ = ["Asker", "Service", "ServiceParts"]
