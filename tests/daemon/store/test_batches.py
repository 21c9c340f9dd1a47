"""Looking at thousands of models a few at a time."""

from __future__ import annotations

from craftcached.store.batches import LOOKED_AT_ONCE, paced_batches


async def test_each_item_comes_once_and_a_few_at_a_time() -> None:
    items = list(range(2 * LOOKED_AT_ONCE + 3))
    batches = [batch async for batch in paced_batches(items)]
    assert [len(batch) for batch in batches] == [LOOKED_AT_ONCE, LOOKED_AT_ONCE, 3]
    assert [item for batch in batches for item in batch] == items
    none: list[int] = []
    assert [batch async for batch in paced_batches(none)] == []
