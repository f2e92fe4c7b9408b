"""The shared memory: taken by the one call it is meant for, sealed, seen by others. Needs torch."""

import fcntl
import mmap
import os

import pytest

torch = pytest.importorskip("torch")

from kvferry.vllm.kv_memory import SharedMemory  # noqa: E402 needs torch

SIZE = 1 << 20


def test_the_kv_cache_lands_in_a_sealed_memfd():
    memory = SharedMemory(SIZE)
    with memory.context():
        tensor = torch.zeros(SIZE, dtype=torch.int8, device=torch.device("cpu"))
    assert memory.address == tensor.data_ptr()
    assert os.fstat(memory.fd).st_size == SIZE
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, SIZE // 2)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, SIZE * 2)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(memory.fd)
    assert not tensor.any()
    tensor[1234] = 56
    view = mmap.mmap(memory.fd, SIZE)
    assert view[1234] == 56
    view[0:3] = b"abc"
    assert tensor[:3].tolist() == [97, 98, 99]
    # The views that vLLM makes keep the mapping, whatever becomes of ours.
    page = torch.as_strided(tensor, (2, 8), (4096, 1)).view(torch.bfloat16)
    memory.close()
    memory.close()
    del tensor
    page[1, 0] = 1.0
    assert view[4096:4098] != b"\0\0"


def test_other_allocations_pass():
    memory = SharedMemory(SIZE)
    with memory.context():
        torch.zeros(SIZE, dtype=torch.uint8)
        torch.zeros(SIZE // 2, dtype=torch.int8)
        torch.zeros((SIZE,), dtype=torch.int8)
        torch.zeros(4, 4)
        torch.ones(SIZE, dtype=torch.int8)
        torch.zeros(SIZE, dtype=torch.int8, device="meta")
    assert memory.fd is None
    assert "did not allocate" in memory.failure


def test_only_the_first_allocation_is_taken():
    memory = SharedMemory(SIZE)
    with memory.context():
        first = torch.zeros(SIZE, dtype=torch.int8)
        second = torch.zeros(SIZE, dtype=torch.int8)
    assert memory.address == first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("size", [0, 1 << 62])
def test_without_a_memfd_vllm_allocates_as_ever(size, monkeypatch):
    memory = SharedMemory(size)
    with memory.context():
        assert memory.allocate() is None
    assert memory.fd is None
    assert "no memfd" in memory.failure


def test_a_kernel_without_memfd(monkeypatch):
    def refuse(*_):
        raise OSError("not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    memory = SharedMemory(SIZE)
    with memory.context():
        assert torch.zeros(SIZE, dtype=torch.int8).shape == (SIZE,)
    assert "not here" in memory.failure


def test_a_python_without_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory(SIZE)
    with memory.context():
        tensor = torch.zeros(SIZE, dtype=torch.int8)
    assert memory.address == tensor.data_ptr()
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 1)


def test_a_machine_without_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    memory = SharedMemory(SIZE)
    assert memory.allocate() is None
    assert "memfd_create" in memory.failure
