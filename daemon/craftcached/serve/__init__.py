"""The daemon's two sockets: ``worker/handles.sock`` for workers, ``craftcache.sock`` for people.

``listeners`` opens both, and metrics over TCP; each server stands in a module of its own.
"""
