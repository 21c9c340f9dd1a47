"""The soak: everything at once for as long as is wanted, with the daemon killed every few seconds.

``python -m tests.soak --seconds 600`` (``make soak``) runs it: clients of three users warm, load,
pin, hold, delete, evict and verify models that are more than the quota holds, while their
repositories and a watched export change. It ends with a report, or with what was wrong.
"""
