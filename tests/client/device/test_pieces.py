"""Pieces bring every byte of every storage once, and fit into a buffer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from craftcache.device.pieces import PAGE_BYTES, SMALL_BYTES, Piece, cut

CAPACITY = 256 * 1024

SIZES = st.one_of(
    st.integers(0, 70),
    st.integers(SMALL_BYTES - 70, SMALL_BYTES + 70),
    st.integers(0, 3 * CAPACITY),
    st.sampled_from([CAPACITY, CAPACITY - PAGE_BYTES, CAPACITY + 1, 2 * CAPACITY]),
)

GAPS = st.one_of(st.integers(0, 64), st.integers(0, 2 * PAGE_BYTES), st.integers(0, 2 * CAPACITY))


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Offsets and sizes of storages in a file."""
    offset, storages = draw(GAPS), []
    for nbytes in draw(st.lists(SIZES, max_size=30)):
        storages.append((offset, nbytes))
        offset += nbytes + draw(GAPS)
    return storages


def bytes_of(piece: Piece) -> list[tuple[int, int, int]]:
    """Places in the buffer and in the file of what is read, and the size."""
    return [(span.position, span.offset, span.nbytes) for span in piece.spans]


@given(layouts())
def test_every_byte_comes_once_and_from_where_it_is(storages: list[tuple[int, int]]) -> None:
    brought: dict[int, int] = {}
    for piece in cut(storages, CAPACITY):
        assert piece.fragments
        for fragment in piece.fragments:
            offset, nbytes = storages[fragment.storage]
            assert fragment.start == brought.get(fragment.storage, 0)
            brought[fragment.storage] = fragment.start + fragment.nbytes
            assert brought[fragment.storage] <= nbytes
            assert fragment.position + fragment.nbytes <= piece.used
            assert any(
                position <= fragment.position
                and fragment.position - position == offset + fragment.start - place
                and fragment.position + fragment.nbytes <= position + length
                for position, place, length in bytes_of(piece)
            )
    assert brought == {number: size for number, (_, size) in enumerate(storages) if size}


@given(layouts())
def test_what_is_read_lies_on_pages_and_fits(storages: list[tuple[int, int]]) -> None:
    for piece in cut(storages, CAPACITY):
        end = 0
        for position, offset, nbytes in bytes_of(piece):
            assert position % PAGE_BYTES == offset % PAGE_BYTES == nbytes % PAGE_BYTES == 0
            assert position >= end
            end = position + nbytes
        assert piece.used <= end <= CAPACITY


@given(layouts())
def test_only_small_storages_travel_together_and_all_of_each(
    storages: list[tuple[int, int]],
) -> None:
    for piece in cut(storages, CAPACITY):
        sizes = {storages[fragment.storage][1] for fragment in piece.fragments}
        if piece.together:
            assert max(sizes) <= SMALL_BYTES
            assert all(
                fragment.nbytes == storages[fragment.storage][1] for fragment in piece.fragments
            )
        else:
            assert min(sizes) > SMALL_BYTES
            assert len(piece.spans) == 1


def test_a_language_model_s_norms_and_biases_are_one_piece() -> None:
    layer = [(6 << 20), (2 << 20), 3072, 3072, (8 << 20), 3072, 3072]
    storages, offset = [], 64
    for nbytes in layer * 26:
        storages.append((offset, nbytes))
        offset += nbytes + 64
    pieces = list(cut(storages, 8 << 20))
    assert [piece.together for piece in pieces].count(True) == 1
    assert len(pieces[-1].fragments) == 4 * 26
    assert len(pieces) < 1.15 * offset / (8 << 20) + 2
