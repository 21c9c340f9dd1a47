"""Messages of every kind, as Hypothesis strategies, and answers decoded with their descriptors."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from craftcache import wire
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.locked import LockedRevision, LockEntry
from craftcache.sources import HubSource
from tests.support.sockets import status


def batch(sources: list[HubSource], options: wire.WarmOptions) -> wire.WarmBatch:
    return wire.WarmBatch(tuple(wire.Warm(source, options) for source in sources))


def decode_answer(packet: bytes) -> Any:
    """A message with as many closed descriptors as it says."""
    fields = json.loads(packet)
    files = fields["files"] if fields.get("type") == "loaded" else []
    try:
        count = sum(
            1 + (file["has_index"] is True) + (file.get("memory") is not None) for file in files
        )
    except (KeyError, TypeError):
        count = 0
    return wire.decode_answer(packet, [-1] * count)


PRINTABLE = st.characters(exclude_categories=("C", "Z"), exclude_characters="\\/")
NAMES = st.text(PRINTABLE, min_size=1, max_size=30).filter(lambda name: name not in {".", ".."})
SIZES = st.integers(0, 2**63 - 1)
SOURCES = st.text("abcXYZ09_", min_size=1, max_size=30).map(HubSource)
INFOS = st.builds(
    FileInfo,
    filename=NAMES,
    size=SIZES,
    origin=NAMES,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    verified_at=st.integers(0, 2**32).map(lambda at: datetime.fromtimestamp(at, UTC)),
)
INFO_TUPLES = st.lists(INFOS, max_size=wire.MAX_FILES).map(tuple)
PLAIN_FILES = st.builds(OpenFile, INFOS, st.just(-1), st.none() | st.just(-1))
SHARED_FILES = INFOS.flatmap(
    lambda info: st.builds(
        OpenFile,
        st.just(info),
        st.just(-1),
        st.none() | st.just(-1),
        memory_bytes=st.integers(info.size, 2**63 - 1),
        lease=st.just(-1),
    )
)
OPEN_FILES = PLAIN_FILES | SHARED_FILES
MOMENTS = st.floats(0, 2**40)
COMING = st.builds(
    wire.Coming,
    NAMES,
    NAMES,
    SIZES,
    st.none() | SIZES,
    st.none() | MOMENTS,
    st.none() | MOMENTS,
    MOMENTS,
)
NOT_WARM = st.builds(wire.NotWarm, *[NAMES] * 4, MOMENTS, st.none() | MOMENTS)
RECENT = st.builds(wire.RecentModel, NAMES, NAMES, SIZES, MOMENTS, st.booleans())
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
GPUS = st.builds(
    wire.GpuReport,
    *(NAMES, NAMES, SIZES, SIZES, st.none() | SIZES, SIZES),
    st.lists(
        st.builds(wire.GpuModel, NAMES, NAMES, DIGESTS, SIZES, SIZES, st.none() | MOMENTS),
        max_size=3,
    ).map(tuple),
)
COMPARISONS = st.builds(
    wire.GpuComparison, NAMES, NAMES, NAMES, DIGESTS, st.sampled_from(["right", "wrong"])
)
STATUSES = st.builds(
    status,
    gpus=st.lists(GPUS, max_size=2).map(tuple),
    version=NAMES,
    pid=SIZES,
    models=SIZES,
    watches=st.dictionaries(NAMES, SIZES),
    coming=st.lists(COMING, max_size=3).map(tuple),
    not_warm=st.lists(NOT_WARM, max_size=3).map(tuple),
    not_warm_count=SIZES,
    recent=st.lists(RECENT, max_size=3).map(tuple),
    disk=st.none() | st.builds(wire.Disk, SIZES, SIZES),
    quarantined=SIZES,
    hashed_since=st.none() | MOMENTS,
    fallbacks=st.dictionaries(NAMES, SIZES),
)
FILENAMES = st.lists(NAMES, max_size=wire.MAX_FILES).map(tuple)
VERSIONS = st.tuples(st.integers(0, 65_535), st.integers(0, 65_535)).map(
    lambda ends: wire.Versions(min(ends), max(ends))
)
FLAGS = [st.booleans()] * 3
PATTERNS = st.lists(NAMES, max_size=4).map(tuple)
HEX = "0123456789abcdef"
LOCKS = st.builds(
    LockedRevision,
    st.text(HEX, min_size=40, max_size=40),
    st.lists(
        st.builds(
            LockEntry,
            NAMES,
            st.text(HEX, min_size=64, max_size=64),
            SIZES,
            st.none() | st.text(HEX, min_size=40, max_size=40),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda file: file.filename,
    ).map(tuple),
    st.booleans(),
)
OPTIONS = st.one_of(
    st.builds(wire.WarmOptions, FILENAMES, *FLAGS),
    st.builds(wire.WarmOptions, st.just(()), *FLAGS, include=PATTERNS, exclude=PATTERNS),
    st.builds(wire.WarmOptions, st.just(()), *FLAGS, lock=LOCKS),
)
WARMS = st.builds(wire.Warm, SOURCES, OPTIONS)
FALLBACKS = st.builds(wire.ReportedFallback, NAMES, NAMES, SIZES)
HELLOS = st.builds(
    wire.Hello, VERSIONS, NAMES, st.lists(FALLBACKS, max_size=wire.MAX_FILES).map(tuple)
)
REQUESTS = st.one_of(
    HELLOS,
    st.builds(wire.Load, SOURCES, FILENAMES),
    st.builds(wire.Resolve, SOURCES, NAMES),
    WARMS,
    st.builds(batch, st.lists(SOURCES, min_size=2, max_size=32), OPTIONS),
    st.builds(wire.Status),
    st.builds(wire.Models, st.just("") | NAMES),
    st.builds(wire.DescribeGpu),
    st.builds(wire.VerifyGpu),
)
STATES: st.SearchStrategy[wire.State] = st.sampled_from(
    ["queued", "fetching", "verifying", "inspecting", "publishing", "done", "failed"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(0, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
ANSWERS = st.one_of(
    HELLOS,
    st.builds(
        wire.Progress,
        st.just("") | NAMES,
        st.none() | NAMES,
        SIZES,
        st.none() | SIZES,
        STATES,
    ),
    st.builds(wire.Loaded, NAMES, NAMES, st.lists(OPEN_FILES, max_size=wire.MAX_FILES).map(tuple)),
    st.builds(wire.Resolved, NAMES, SIZES, SIZES),
    st.builds(wire.WarmedModel, st.just(""), NAMES, SIZES, SIZES, resident_bytes=st.none() | SIZES),
    STATUSES,
    GPUS,
    st.builds(wire.GpuComparisons, st.lists(COMPARISONS, max_size=3).map(tuple)),
    st.builds(
        wire.ModelsPage,
        st.lists(st.builds(wire.CachedModel, NAMES, NAMES, INFO_TUPLES), max_size=3).map(tuple),
        st.just("") | NAMES,
    ),
)
