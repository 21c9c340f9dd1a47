"""Who is an administrator, and since when."""

from __future__ import annotations

import grp

import pytest

from craftcache.errors import PolicyDenied
from craftcached.serve.peers import Administrators, Peer

GROUP = next(group for group in grp.getgrall() if group.gr_gid != 0)
MEMBER = Peer(1, 65533, frozenset({GROUP.gr_gid}))


def test_the_group_may_change_while_it_serves() -> None:
    administrators = Administrators("")
    for name in ("", "no-such-group", GROUP.gr_name, ""):
        administrators.group = name
        assert administrators.group == name
        if name == GROUP.gr_name:
            administrators.check(MEMBER, "evicting")
        else:
            with pytest.raises(PolicyDenied):
                administrators.check(MEMBER, "evicting")
