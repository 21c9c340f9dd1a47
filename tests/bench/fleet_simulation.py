"""From eight cold nodes to ten thousand: what the links allow, by simulation.

``python -m tests.bench.fleet_simulation`` lets N nodes ask for the same model at the same moment,
each for several slices at once and in order. A slice comes over the uplink once; whoever asks for
one that is under way looks for it every half second, as nginx does under its cache lock; the links
of mirrors and nodes are shared fairly among what is on them.

What it does not know, and what would make things slower: disks, processors and memory of mirrors
and nodes; connections and their set-up; other traffic; nodes that start one after the other;
mirrors that are full, fail, or have some of it already; the Hub's limits on requests. Nodes are
moved in groups of equal ones, so it says nothing of the slowest one. It was compared with eight
nodes only, on one machine (``tests.bench.fleet``).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

GROUPS = 32
POLL_SECONDS = 0.5
STEPS = 3000
"""Steps of time in the time that the links alone would take."""

GBIT = 1e9 / 8
MIB = 2**20


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    Attributes:
        nodes: Number of nodes.
        size: Bytes of the model.
        uplink: Bytes a second from the origin.
        mirrors: Number of mirrors that share the slices; 0 lets each node ask the origin.
        link: Bytes a second of each mirror.
        node_link: Bytes a second of each node.
        slice_bytes: Bytes of a slice.
        connections: Slices that a node asks for at once.
    """

    nodes: int
    size: float = 6.7e9
    uplink: float = 10 * GBIT
    mirrors: int = 1
    link: float = 25 * GBIT
    node_link: float = 25 * GBIT
    slice_bytes: float = 8 * MIB
    connections: int = 8

    @property
    def bound(self) -> float:
        """Seconds that the links alone take."""
        node = self.size / self.node_link
        if not self.mirrors:
            return max(self.nodes * self.size / self.uplink, node)
        served = self.nodes * self.size / (self.mirrors * self.link)
        return max(self.size / self.uplink, served, node)

    @property
    def limit(self) -> str:
        """Which link is the limit."""
        if not self.mirrors or self.bound == self.size / self.uplink:
            return "uplink"
        return "node" if self.bound == self.size / self.node_link else "mirror"


def seconds(fleet: Fleet, *, seed: int = 1) -> float:
    """How long it takes until the last node has the model."""
    if not fleet.mirrors:
        return fleet.bound
    chance = np.random.default_rng(seed)
    groups = min(GROUPS, fleet.nodes)
    weight = fleet.nodes / groups
    slices = max(1, round(fleet.size / fleet.slice_bytes))
    step = fleet.bound / STEPS
    fetched = np.zeros(slices)  # bytes of each slice at its mirror
    there = np.full(slices, np.inf)  # when it was whole there
    asked = np.zeros(slices, dtype=bool)
    following = np.zeros(groups, dtype=int)  # the next slice that a group asks for
    wanted = np.full((groups, fleet.connections), -1)
    looks = np.zeros((groups, fleet.connections))  # when a slot looks for its slice again
    left = np.zeros((groups, fleet.connections))
    now = 0.0
    while True:
        for slot in range(fleet.connections):
            free = (wanted[:, slot] < 0) & (following < slices)
            wanted[free, slot] = following[free]
            left[free, slot] = fleet.slice_bytes
            fresh = free & ~asked[np.minimum(following, slices - 1)]
            # Who asks first is sent it as it comes; the others look every half second.
            looks[free, slot] = (
                now + np.where(fresh, 0.0, chance.random(groups) * POLL_SECONDS)[free]
            )
            asked[following[free]] = True
            following[free] += 1
        if (wanted < 0).all():
            return now
        under_way = asked & (fetched < fleet.slice_bytes)
        if under_way.any():
            fetched[under_way] += fleet.uplink * step / under_way.sum()
        there[asked & (fetched >= fleet.slice_bytes) & np.isinf(there)] = now
        held = wanted >= 0
        whole = np.where(held, there[np.maximum(wanted, 0)], np.inf)
        missed = held & np.isinf(whole) & (looks <= now)
        looks[missed] += POLL_SECONDS
        moving = held & (whole <= now) & (looks <= now)
        if moving.any():
            on_mirrors = fleet.mirrors * fleet.link / (moving.sum() * weight)
            on_node = fleet.node_link / np.maximum(moving.sum(axis=1, keepdims=True), 1)
            left -= np.where(moving, np.minimum(on_mirrors, on_node) * step, 0.0)
            wanted[moving & (left <= 0)] = -1
        now += step


def two_tiers(fleet: Fleet, racks: int) -> float:
    """With a mirror in each rack, which asks the mirrors above: both tiers run at the same time."""
    above = replace(fleet, nodes=racks, node_link=fleet.link)
    rack = replace(
        fleet, nodes=-(-fleet.nodes // racks), mirrors=1, uplink=fleet.size / seconds(above)
    )
    return seconds(rack)


def shown(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def rows(fleet: Fleet, numbers: Iterable[int]) -> Iterable[tuple[str, ...]]:
    """A line for each number of nodes."""
    for nodes in numbers:
        one = replace(fleet, nodes=nodes)
        eight = replace(one, mirrors=8)
        racks = max(1, nodes // 40)
        yield (
            f"{nodes}",
            shown(replace(one, mirrors=0).bound),
            f"{shown(seconds(one))} ({one.limit})",
            f"{shown(seconds(eight))} ({eight.limit})",
            shown(two_tiers(one, racks)) if racks > 1 else "",
        )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--gigabytes", type=float, default=6.7)
    parser.add_argument("--uplink", type=float, default=10, help="Gbit/s")
    parser.add_argument("--link", type=float, default=25, help="of a mirror and a node, Gbit/s")
    parser.add_argument("--slice", type=int, default=8, help="MiB")
    parser.add_argument("--nodes", type=int, nargs="*", default=[8, 100, 1000, 10_000])
    given = parser.parse_args()
    fleet = Fleet(
        nodes=0,
        size=given.gigabytes * 1e9,
        uplink=given.uplink * GBIT,
        link=given.link * GBIT,
        node_link=given.link * GBIT,
        slice_bytes=given.slice * MIB,
    )
    print("nodes | no mirror | one mirror | eight mirrors | one, and one in each rack of 40")
    for row in rows(fleet, given.nodes):
        print(" | ".join(row))
    small = Fleet(8, size=96 * MIB, uplink=24 * MIB, link=10 * GBIT, node_link=10 * GBIT)
    ratio = seconds(small) / seconds(replace(small, nodes=1))
    print(f"8 nodes, 96 MiB over 24 MiB/s: {ratio:.2f} times one node's; see tests.bench.fleet")


if __name__ == "__main__":
    main()
