"""From the device to the host, and into the notes of recorded steps."""

from __future__ import annotations

import pytest
import torch

from lightning_sphere.measurement.ring import COLUMNS, HostRow, Ring
from lightning_sphere.measurement.transfer import Transfer

HOST = torch.device("cpu")


def test_tensors_of_the_host_are_handed_on_as_they_are() -> None:
    tensors = [torch.randn(3, requires_grad=True), torch.randn(2, 2)]
    result = Transfer(tensors).result()
    assert [t.data_ptr() for t in result] == [t.data_ptr() for t in tensors]
    assert not any(t.requires_grad for t in result)
    assert Transfer([]).result() == []


def test_a_ring_goes_on_in_its_other_buffer_and_only_there() -> None:
    ring = Ring(2, COLUMNS, 3, HOST, torch.float64)
    assert ring.drain() is not None, "an empty ring can be handed over, too"
    ring = Ring(2, COLUMNS, 3, HOST, torch.float64)
    first = ring.data
    for number in range(2):
        assert not ring.full
        ring.next_row().fill_(number)
        ring.commit(HostRow(number, 0.0))
    assert ring.full
    drained = ring.drain()
    assert drained is not None
    assert len(drained) == 2
    assert len(ring) == 0
    assert ring.data is not first
    assert not ring.spare
    ring.next_row().fill_(7.0)
    ring.commit(HostRow(2, 0.0))
    assert ring.drain() is None, "the first buffer is still being read"
    assert len(ring) == 1
    data, host = drained.result()
    assert [row.step for row in host] == [0, 1]
    assert data[:, 0, 0].tolist() == [0.0, 1.0]
    drained.release()
    again = ring.drain()
    assert again is not None
    assert again.result()[0].unique().tolist() == [7.0]
    assert ring.data is first


def test_notes_hold_what_has_arrived() -> None:
    lr, count, reference = torch.tensor(0.1), torch.ones(4), torch.zeros(3, 2)
    row = HostRow(3, 1.0, [{"lr": lr, "eps": 1e-8}, {"lr": 0.5}], count, reference, apart=2)
    assert [id(t) for t in row.tensors()] == [id(lr), id(count), id(reference)]
    arrived = {id(t): t + 1.0 for t in row.tensors()}
    moved = row.on_host(arrived)
    assert moved.hyperparameters == [{"lr": arrived[id(lr)], "eps": 1e-8}, {"lr": 0.5}]
    assert moved.optimizer_step is arrived[id(count)]
    assert moved.reference is arrived[id(reference)]
    assert moved.asked is None
    assert (moved.step, moved.wall_time, moved.apart, moved.skipped) == (3, 1.0, 2, False)
    assert row.optimizer_step is count


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_and_everything_arrives() -> None:
    tensors = [torch.randn(1000, 1000, device="cuda"), torch.arange(5, device="cuda"), torch.ones(2)]
    expected = [t.cpu() for t in tensors]
    try:
        torch.cuda.set_sync_debug_mode("error")
        transfer = Transfer(tensors)
        del tensors
    finally:
        torch.cuda.set_sync_debug_mode("default")
    result = transfer.result()
    assert all(map(torch.equal, result, expected))
    assert [t.device.type for t in result] == ["cpu"] * 3
    assert result[0].is_pinned()
