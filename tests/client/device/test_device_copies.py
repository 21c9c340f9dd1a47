"""Copies into a module on a device are those that load_state_dict would make, one by one."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.audiocraft.deferring import Deferral
from craftcache.checkpoint.adopting import adopt
from craftcache.checkpoint.filling import copy_into
from craftcache.checkpoint.index import ITEM_BYTES
from craftcache.checkpoint.tensors import build
from craftcache.device.link import DeviceLink
from craftcache.device.staging import StagingRing
from craftcache.errors import DeviceLost, DeviceMemoryFull
from tests.client.checkpoint.test_tensors import (
    CONVERSIONS,
    Converting,
    checkpoints_of_three,
)
from tests.client.device.test_onto_device import BUFFER_BYTES, Stop, link_of, stopping_after
from tests.support.checkpoints import index_of, loaded, maps_of, memory_file, resident_bytes, saved
from tests.support.emulated_accelerator import EmulatedAccelerator, emulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = 400
"""Rows and columns of a weight that is larger than a buffer, as float32."""


@pytest.fixture(params=[True, False], ids=["lazy", "eager"])
def device(request: pytest.FixtureRequest) -> Iterator[EmulatedAccelerator]:
    with emulated(lazy=request.param) as accelerator:
        yield accelerator


def copy(fd: int, module: torch.nn.Module, link: DeviceLink, key: str | None = None) -> None:
    """Copy the checkpoint into the module by way of the emulated device."""
    copy_into(index_of(fd), fd, module, key=key, link_to=lambda _: link)


def weights(layers: int = 6, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Of a ``model_of`` so many layers: large weights and small biases."""
    generator = torch.Generator().manual_seed(layers)
    state = {}
    for layer in range(layers):
        weight = torch.randn(LARGE, LARGE, generator=generator)
        state[f"{layer}.weight"] = weight.to(dtype)
        state[f"{layer}.bias"] = torch.randn(LARGE, generator=generator).to(dtype)
    return state


def model_of(layers: int = 6, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(LARGE, LARGE) for _ in range(layers))).to(dtype)


def assert_filled(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The module has these values, cast to its own dtypes."""
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_all_values_arrive_cast(device: EmulatedAccelerator, dtype: torch.dtype) -> None:
    state = weights()
    module = model_of(dtype=dtype)
    before = dict(module.named_parameters())
    versions = {name: parameter._version for name, parameter in before.items()}
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
        assert not resident_bytes(fd)
        assert not maps_of(fd)
    assert_filled(module, state)
    assert all(before[name] is parameter for name, parameter in module.named_parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(before[name]._version > version for name, version in versions.items())


def test_no_more_memory_is_taken_than_one_buffer(device: EmulatedAccelerator) -> None:
    with memory_file(saved(weights())) as fd:
        link = link_of(device)
        copy(fd, model_of(), link)
    assert device.peak_bytes == BUFFER_BYTES
    assert link.ring.idle == device.pinned


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_is_read_is_copied_too(device: EmulatedAccelerator, mapped: bool) -> None:
    state, module, link = weights(), model_of(), link_of(device)
    with memory_file(saved(state)) as fd:
        index = index_of(fd)
        copy_into(index, fd, module, key=None, mapped=mapped, link_to=lambda _: link)
    assert_filled(module, state)


def test_an_old_container_whose_storages_lie_anywhere(device: EmulatedAccelerator) -> None:
    state, module = weights(), model_of()
    with memory_file(saved(state, _use_new_zipfile_serialization=False)) as fd:
        copy(fd, module, link_of(device))
    assert_filled(module, state)


def test_where_there_is_no_link_copies_are_plain() -> None:
    state, module = weights(2), model_of(2)
    with memory_file(saved(state)) as fd:
        copy_into(index_of(fd), fd, module, key=None, link_to=lambda _: None)
    assert_filled(module, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", CONVERSIONS)
@pytest.mark.parametrize("what", checkpoints_of_three())
def test_hooks_that_write_to_the_checkpoint(what: str, how: str, dtype: torch.dtype) -> None:
    content = saved(checkpoints_of_three()[what])
    plain, into = (Converting(CONVERSIONS[how], dtype) for _ in range(2))
    state: Any = loaded(content)
    plain.load_state_dict(state)
    with memory_file(content) as fd, emulated() as device:
        copy(fd, into, link_of(device))
    assert_filled(into, plain.state_dict())


class Hooked(torch.nn.Module):
    """Two large layers; ``hook`` is called before the second, with the state of both."""

    def __init__(self, hook: Callable[[dict[str, Any]], object]) -> None:
        super().__init__()
        self.first = torch.nn.Linear(LARGE, LARGE, bias=False)
        self.second = torch.nn.Linear(LARGE, LARGE, bias=False)
        given: dict[str, Any] = {}
        own: Any = self  # torch leaves the method untyped
        own.register_load_state_dict_pre_hook(lambda _, state, *__: given.update(state))
        second: Any = self.second
        second.register_load_state_dict_pre_hook(lambda *_: hook(given))


def spoil_in_torch(state: dict[str, Any]) -> None:
    state["first.weight"].zero_()


def spoil_in_numpy(state: dict[str, Any]) -> None:
    state["first.weight"].numpy()[:] = 0


@pytest.mark.parametrize("spoil", [spoil_in_torch, spoil_in_numpy])
def test_what_was_copied_is_not_what_a_later_hook_writes(
    spoil: Callable[[dict[str, Any]], None], device: EmulatedAccelerator
) -> None:
    state = {f"{name}.weight": torch.randn(LARGE, LARGE) for name in ("first", "second")}
    module = Hooked(spoil)
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
    assert_filled(module, state)


@pytest.mark.parametrize("rows", [slice(None), slice(3, 4), slice(-1, None)])
def test_what_a_hook_has_written_is_what_is_copied(
    device: EmulatedAccelerator, rows: slice
) -> None:
    state = weights(2, torch.float32)
    module = model_of(2)
    hooks: Any = module
    hooks.register_load_state_dict_pre_hook(
        lambda _, given, *__: given["1.weight"].numpy().__setitem__(rows, 5)
    )
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
    state["1.weight"][rows] = 5
    assert_filled(module, state)


def test_memory_that_was_handed_out_may_be_written_to_at_any_time(
    device: EmulatedAccelerator,
) -> None:
    state = {f"{name}.weight": torch.randn(LARGE, LARGE) for name in ("first", "second")}
    arrays: list[Any] = []
    spoiled = threading.Event()

    def spoil(_: dict[str, Any]) -> None:
        arrays[0][:] = 0
        spoiled.set()

    module = Hooked(spoil)
    hooks: Any = module.first
    hooks.register_load_state_dict_pre_hook(
        lambda _, given, *__: arrays.append(given["first.weight"].numpy())
    )
    with memory_file(saved(state)) as fd:  # a reader that gets ahead of the hook is held up
        copy(fd, module, link_of(device, check=lambda: spoiled.wait(0.3) and None))
    assert_filled(module, state)


def test_a_hook_sees_what_was_copied(device: EmulatedAccelerator) -> None:
    state = {f"{name}.weight": torch.randn(LARGE, LARGE) for name in ("first", "second")}
    seen: list[torch.Tensor] = []

    def look(_: dict[str, Any]) -> None:
        with torch.no_grad():
            seen.append(module.first.weight.clone())
            module.first.weight.mul_(2)

    module = Hooked(look)
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
    assert torch.equal(seen[0], state["first.weight"])
    assert_filled(module, {**state, "first.weight": state["first.weight"] * 2})


def test_of_two_copies_to_one_place_the_last_one_stays(device: EmulatedAccelerator) -> None:
    state = weights(8)
    module = model_of(8)
    for layer in list(module.children())[1:]:
        layer.weight, layer.bias = module[0].weight, module[0].bias  # type: ignore[index]
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
    assert torch.equal(module[0].weight, state["7.weight"].float())  # type: ignore[index]
    assert torch.equal(module[0].bias, state["7.bias"].float())  # type: ignore[index]


def test_views_of_one_memory_are_filled_each(device: EmulatedAccelerator) -> None:
    module = model_of(2)
    both = torch.zeros(2, LARGE, LARGE)
    for number in range(2):
        module[number].weight = torch.nn.Parameter(both[number])  # type: ignore[index]
    state = weights(2)
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
    assert_filled(module, state)


def test_what_is_not_flat_is_copied_as_ever(device: EmulatedAccelerator) -> None:
    module = model_of(2)
    module[0].weight = torch.nn.Parameter(torch.zeros(LARGE, LARGE).t())  # type: ignore[index]
    state = weights(2)
    state["1.weight"] = state["1.weight"].t()
    with memory_file(saved(state)) as fd:
        copy(fd, module, link_of(device))
    assert_filled(module, state)


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([name for name in ITEM_BYTES if hasattr(torch, name)]),
    st.sampled_from([name for name in ITEM_BYTES if hasattr(torch, name)]),
    st.sampled_from([1, 3, 40_000]),
)
@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:Casting complex")
def test_any_dtype_is_cast_as_copy_does(ours: str, theirs: str, count: int) -> None:
    module, plain = torch.nn.Module(), torch.nn.Module()
    values = torch.arange(count).remainder(3).to(getattr(torch, theirs))
    for each in (module, plain):
        each.register_buffer("values", torch.zeros(count, dtype=getattr(torch, ours)))
    try:
        plain.load_state_dict({"values": values})
    except RuntimeError:  # torch has no such cast
        return
    with memory_file(saved({"values": values})) as fd, emulated() as device:
        copy(fd, module, link_of(device))
    bits = [each.get_buffer("values").view(torch.uint8) for each in (module, plain)]
    assert torch.equal(*bits)


def test_what_does_not_fit_is_said_and_the_rest_is_copied(device: EmulatedAccelerator) -> None:
    state = weights(2)
    wrong = {**state, "0.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    module = model_of(2)
    said = r"(?s)Unexpected.*extra.*size mismatch.*0\.weight"
    with memory_file(saved(wrong)) as fd, pytest.raises(RuntimeError, match=said):
        copy(fd, module, link_of(device))
    assert torch.equal(module[1].weight, state["1.weight"].float())  # type: ignore[index]
    assert torch.equal(module[0].bias, state["0.bias"].float())  # type: ignore[index]


def test_a_file_that_ends_half_way_is_an_error(device: EmulatedAccelerator) -> None:
    state = {f"{name}.weight": torch.randn(LARGE, LARGE) for name in ("first", "second")}
    link = link_of(device)
    with memory_file(saved(state)) as fd:
        end = index_of(fd).storages[1].offset // 4096 * 4096
        module = Hooked(lambda _: os.ftruncate(fd, end))
        with pytest.raises(EOFError, match="the file ends at byte"):
            copy(fd, module, link)
    assert link.ring.idle == device.pinned


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("lost_when", ["told", "waited for"])
def test_a_lost_device_is_an_error_of_ours(count: int, lost_when: str) -> None:
    with (
        memory_file(saved(weights())) as fd,
        emulated(lost_after=count, lost_when=lost_when) as device,
        pytest.raises(DeviceLost, match="emulated failure"),
    ):
        copy(fd, model_of(), link_of(device))


def test_a_device_without_room_for_a_buffer_is_said_and_may_be_tried_again() -> None:
    state, module = weights(), model_of()
    with memory_file(saved(state)) as fd, emulated(capacity=BUFFER_BYTES - 1) as device:
        link = link_of(device)
        with pytest.raises(DeviceMemoryFull, match=rf"needs .* \({BUFFER_BYTES} bytes\)") as caught:
            copy(fd, module, link)
        assert caught.value.retryable
        device.capacity = BUFFER_BYTES
        copy(fd, module, link)
    assert_filled(module, state)


@pytest.mark.parametrize("count", [0, 2, 7])
def test_a_cancelled_copy_ends(device: EmulatedAccelerator, count: int) -> None:
    link = link_of(device, check=stopping_after(count))
    with memory_file(saved(weights())) as fd, pytest.raises(Stop):
        copy(fd, model_of(), link)
    assert link.ring.idle == device.pinned


class Interrupted(torch.nn.Linear):
    """Is interrupted while its state is copied."""

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        raise KeyboardInterrupt


def test_an_interrupt_ends_all(device: EmulatedAccelerator) -> None:
    module = torch.nn.Sequential(*(Interrupted(LARGE, LARGE) for _ in range(6)))
    link = link_of(device)
    with memory_file(saved(weights())) as fd, pytest.raises(KeyboardInterrupt):
        copy(fd, module, link)
    assert link.ring.idle == device.pinned


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_adopted_states_are_copied_where_they_cannot_be_taken_over(
    device: EmulatedAccelerator, dtype: torch.dtype
) -> None:
    state, module = weights(dtype=dtype), model_of()
    overwritten: list[torch.Tensor] = []
    link = DeviceLink(device, StagingRing(4 * BUFFER_BYTES, buffer_bytes=BUFFER_BYTES))
    with memory_file(saved(state)) as fd:
        given: Any = build(index_of(fd), fd, device=torch.device("cpu"))
        adopt(module, given, overwritten=overwritten.append, link_to=lambda _: link)
        del given
        assert bool(maps_of(fd)) == (dtype is torch.float32)
    assert_filled(module, state)
    copied = [] if dtype is torch.float32 else list(module.parameters())
    assert [id(tensor) for tensor in overwritten] == [id(parameter) for parameter in copied]


def test_a_deferred_initialisation_does_not_follow_what_was_copied(
    device: EmulatedAccelerator,
) -> None:
    state = weights(2)
    link = link_of(device)
    with Deferral() as deferral:
        module = model_of(2)  # its initialisation is put off
        with memory_file(saved(state)) as fd:
            given: Any = build(index_of(fd), fd, device=torch.device("cpu"))
            adopt(module, given, overwritten=deferral.forget, link_to=lambda _: link)
    deferral.draw()
    assert_filled(module, state)
