"""A short soak; ``make soak`` runs the long one."""

from __future__ import annotations

import pytest

from tests.support.clients import as_root

from .run import Plan, soak


@as_root
@pytest.mark.timeout(400)  # processes that import torch, on a machine that may be busy
def test_a_short_soak_keeps_the_quota_the_pin_and_every_tensor() -> None:
    report = soak(Plan(12.0, {0: 1, 12001: 1, 12002: 1}, clients=3, kill_seconds=(1.5, 2.5)))
    assert report.wrong == []
    assert report.kills > 0
    assert report.looks > 0
    assert report.seen["load"] > 0
    assert report.seen["warm"] > 0
