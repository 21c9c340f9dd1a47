"""The demonstration: the whole promise on one machine, as a check that can fail.

``python -m craftcached.demo [SOURCE]`` starts a daemon in a temporary directory, warms SOURCE,
loads it from several worker processes at once, kills the daemon and loads it again. Without SOURCE
a sample export is made on the spot and served by a small hub in this process, so that every byte
that crosses the network is counted.
"""
