"""The daemon's two sockets: ``worker/handles.sock`` for workers, ``craftcache.sock`` for people."""
