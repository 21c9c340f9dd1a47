"""A Hugging Face Hub and CDN on loopback for the tests, with faults, gates and a journal."""

from .content import Content, Data, Generated, OnDisk
from .faults import (
    CloseEarly,
    Delivery,
    Drip,
    ExpiredSignature,
    Fault,
    FlipBit,
    NoLength,
    NoRanges,
    OtherEtag,
    RateLimited,
    Redirect,
    ResetConnection,
    Stall,
    Status,
    Truncate,
    WithHeaders,
    WrongContentRange,
    WrongStart,
)
from .gates import Gate, Signal, Valve
from .records import Request, matching
from .repos import Repo
from .server import Hosted, Rule, TestHub, hub_in_thread

__all__ = [
    "TestHub",
    "hub_in_thread",
    "Hosted",
    "Rule",
    "Repo",
    "Request",
    "matching",
    "Content",
    "Data",
    "OnDisk",
    "Generated",
    "Gate",
    "Signal",
    "Valve",
    "Fault",
    "Delivery",
    "Status",
    "RateLimited",
    "ExpiredSignature",
    "Redirect",
    "ResetConnection",
    "CloseEarly",
    "Stall",
    "Drip",
    "NoLength",
    "NoRanges",
    "WrongContentRange",
    "WrongStart",
    "FlipBit",
    "Truncate",
    "OtherEtag",
    "WithHeaders",
]
