"""The version of this distribution, readable without any import machinery."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
