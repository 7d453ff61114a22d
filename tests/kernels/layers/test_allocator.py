import torch

from mamltheory.kernels.layers.allocator import keep_freed_memory


def test_the_block_lies_in_memory_of_the_host_whatever_the_default_device(monkeypatch):
    made, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: made.append(empty(*size, **kind)))
    with torch.device("meta"):
        keep_freed_memory.__wrapped__()
    assert [(block.device.type, block.nbytes) for block in made] == [("cpu", 31 * 2**20)]
