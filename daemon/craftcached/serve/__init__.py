"""The daemon's two sockets: ``worker/handles.sock`` for workers, ``craftcache.sock`` for people.

``front`` opens both, and metrics over TCP; each server stands in a module of its own.
"""
