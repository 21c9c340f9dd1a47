"""What a crash or another tool left in staging does not stand in the way of a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fetching import cdn_file, rig_at
from tests.support.hub import Generated

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub

CONTENT = Generated(3 * 1024 * 1024, seed=3)


@pytest.mark.parametrize("name", ["k.part", "k.journal", "k.journal.new", "k.xet"])
@pytest.mark.parametrize("kind", ["directory", "full directory", "dangling link", "garbage"])
async def test_it_is_got_over(hub: TestHub, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "staging" / name
    path.parent.mkdir()
    if kind == "dangling link":
        path.symlink_to("gone")
    elif kind == "garbage":
        path.write_bytes(b"garbage\0" * 1000)
    else:
        path.mkdir()
        if kind == "full directory":
            (path / "file").touch()
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(cdn_file(hub, CONTENT))
        assert fetched.digests.sha256 == CONTENT.sha256
        assert rig.left == ["k.whole"]
