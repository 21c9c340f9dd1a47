"""What a process inherits from whoever starts it: limits, signals, descriptors, replaced modules.

Workers, commands and the daemon are all started by others, so these tests belong to no one room.
"""
