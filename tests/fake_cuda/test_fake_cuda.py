"""The fake device refuses what CUDA refuses, computes what the CPU computes, and counts."""

import copy
import doctest

import numpy as np
import pytest
import torch
from torch import nn

import tests.fake_cuda
from tests.fake_cuda import CardError, fake_cuda

x = torch.arange(6.0).reshape(2, 3)


@pytest.fixture
def fake():
    with fake_cuda() as card:
        yield card


def test_the_example_of_the_package():
    assert doctest.testmod(tests.fake_cuda).failed == 0


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "make",
    [
        lambda: x.to("cuda"),
        lambda: x.cuda(),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: torch.zeros(2, device=torch.device("cuda")),
        lambda: torch.from_numpy(np.ones(2)).to("cuda:0"),
        lambda: x.cuda() * 2 + torch.tensor(1.0),
        lambda: torch.zeros_like(x, device="cuda"),
        lambda: x.cuda().new_zeros(2),
        lambda: x.cuda()[0],
        lambda: x.cuda().double(),
        lambda: nn.Linear(3, 2).to("cuda")(x.cuda()),
        lambda: torch.linalg.eigh(torch.eye(2, device="cuda"))[0],
        lambda: copy.deepcopy(x.cuda()),
        lambda: torch.vmap(lambda row: torch.zeros(3, device=row.device) + row)(x.cuda()),
        lambda: nn.Parameter(x.cuda()),
        lambda: torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(0)),
        lambda: x.cuda()[torch.tensor([0])],
        lambda: x.cuda().copy_(x),
        lambda: x.cuda().unsqueeze_(0).expand(2, 2, 3) + x.cuda(),
    ],
)
def test_tensors_made_on_the_device_say_so(make):
    made = make()
    assert made.device == torch.device("cuda:0")
    assert made.is_cuda
    assert made.cpu().device.type == "cpu"
    assert not made.cpu().is_cuda


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "misuse",
    [
        lambda: x.cuda() + x,
        lambda: x + x.cuda(),
        lambda: x.cuda() @ x.T,
        lambda: torch.cat([x.cuda(), x]),
        lambda: torch.stack([torch.tensor(1.0).cuda(), torch.tensor(1.0)]),
        lambda: x.clone().add_(torch.tensor(1.0).cuda()),
        lambda: x.clone().mul_(x.cuda()),
        lambda: x[torch.tensor([0]).cuda()],
        lambda: x.cuda().index_add(0, torch.tensor([0, 1]), x.cuda()),
        lambda: x.cuda().index_put((torch.tensor([0]),), x[0]),
        lambda: nn.Linear(3, 2)(x.cuda()),
        lambda: nn.Linear(3, 2).to("cuda")(x),
        lambda: torch.where(x.cuda() > 1, x.cuda(), x),
        lambda: nn.functional.cross_entropy(x.cuda(), torch.tensor([0, 1])),
    ],
)
def test_operands_on_two_devices_are_refused(misuse):
    with pytest.raises(CardError, match=r"cuda:0 and cpu.*test_fake_cuda.py:\d+"):
        misuse()


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "read", [lambda: x.cuda().numpy(), lambda: np.asarray(x.cuda()), lambda: np.add(np.ones(3), x.cuda())]
)
def test_numpy_sees_no_memory_of_the_device(read):
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        read()


@pytest.mark.usefixtures("fake")
def test_random_numbers_are_drawn_where_their_generator_is():
    here, there = torch.Generator(), torch.Generator("cuda")
    assert there.device == torch.device("cuda:0")
    for draw in (
        lambda: torch.rand(2, generator=there),
        lambda: torch.rand(2, device="cuda", generator=here),
        lambda: x.cuda().normal_(generator=here),
        lambda: torch.randperm(3, generator=there),
    ):
        with pytest.raises(CardError, match="device type for generator"):
            draw()


@pytest.mark.usefixtures("fake")
def test_operations_without_a_deterministic_form_are_refused_while_it_is_asked_for():
    pooled = nn.functional.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4, device="cuda", requires_grad=True), 2)
    for call in (lambda: x.cuda().cumsum(0), lambda: pooled.sum().backward()):
        with pytest.raises(CardError, match="deterministic"):
            call()
    assert x.cuda().long().cumsum(0).is_cuda
    torch.use_deterministic_algorithms(False)
    try:
        assert torch.equal(x.cuda().cumsum(0).cpu(), x.cumsum(0))
    finally:
        torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize(
    ("wait", "operation"),
    [
        (lambda y: y.sum().item(), "_local_scalar_dense"),
        (lambda y: float(y.sum()), "_local_scalar_dense"),
        (lambda y: bool((y > 9).any()), "_local_scalar_dense"),
        (lambda y: f"{y.sum():.1f}", "_local_scalar_dense"),
        (lambda y: y.cpu(), "_to_copy"),
        (lambda y: y.tolist(), "_to_copy"),
        (lambda y: torch.zeros(2, 3).copy_(y), "copy_"),
        (lambda y: y.nonzero(), "nonzero"),
        (lambda y: y[y > 1], "index"),
        (lambda y: y.unique(), "_unique2"),
        (lambda y: torch.equal(y, y), "equal"),
        (lambda y: torch.linalg.cholesky(y.T @ y + torch.eye(3, device="cuda")), "_linalg_check_errors"),
        (lambda y: torch.linalg.eigvalsh(y @ y.T), "_linalg_eigh"),
    ],
)
def test_waits_are_counted_with_their_line(fake, wait, operation):
    y = x.cuda()
    assert not fake.waits
    wait(y)
    ((seen, line),) = fake.waits
    assert seen == operation
    assert line.startswith("tests/fake_cuda/test_fake_cuda.py:")
    assert fake.waits.total() == 1


def test_what_does_not_wait_counts_no_wait(fake):
    y = x.cuda()
    y[y > 1] = 0.0
    torch.linalg.cholesky_ex(y.T @ y + 1)
    (y * 2).sum().view(1).expand(3)
    y.repeat_interleave(2, dim=0)
    assert not fake.waits


def test_uploads_are_counted_and_launches_without_views(fake):
    y = x.cuda()
    torch.tensor([1, 2], device="cuda")
    y.copy_(x)
    y[torch.tensor([0])]
    assert fake.uploads.total() == 4
    fake.launches.clear()
    y.T.reshape(3, 2).detach() + torch.tensor(1.0)
    assert fake.launches == {"add": 1}
    assert fake.uploads.total() == 4


def test_the_line_is_that_of_the_package(fake):
    from mamltheory.linalg import condition_number

    condition_number(torch.eye(2, device="cuda"))
    assert all(line.startswith("mamltheory/linalg.py:") for _, line in fake.waits)


def trained(device):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    before = list(network.parameters())
    network.to(device)
    assert all(one is other for one, other in zip(network.parameters(), before, strict=True))
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    images = torch.linspace(0, 1, 64).reshape(4, 1, 4, 4).to(device)
    labels = torch.tensor([0, 1, 0, 1]).to(device)
    for _ in range(3):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return state, loss.item()


def test_a_training_has_the_bits_of_the_cpu(fake):
    here, there = trained("cpu"), trained("cuda")
    assert here[1] == there[1]
    assert all(torch.equal(value, there[0][name]) for name, value in here[0].items())
    assert fake.waits.total() == len(there[0]) + 1


@pytest.mark.usefixtures("fake")
def test_functional_derivatives_have_the_bits_of_the_cpu():
    def values(x):
        def f(y):
            return (y.sin() @ y.T).sum(0)

        return (
            torch.func.jacrev(f)(x),
            torch.func.jvp(f, (x,), (x,))[1],
            torch.vmap(torch.func.grad(torch.sum))(x),
        )

    for here, there in zip(values(x), values(x.cuda()), strict=True):
        assert torch.equal(here, there.cpu())


@pytest.mark.usefixtures("fake")
def test_autocast_lowers_products_and_raises_losses():
    y, layer = x.cuda(), nn.Linear(3, 2).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(y).dtype == torch.bfloat16
        assert (layer(y) + 1).dtype == torch.bfloat16
        assert nn.functional.cross_entropy(layer(y), torch.tensor([0, 1]).cuda()).dtype == torch.float32
        assert nn.Linear(3, 2)(x).dtype == torch.float32
    assert layer(y).dtype == torch.float32


def test_tf32_rounds_where_the_switches_of_torch_allow_it():
    image = torch.full((1, 1, 1, 1), 1 + 2.0**-12)
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed, expected in ((True, 1.0), (False, 1 + 2.0**-12)):
            torch.backends.cudnn.allow_tf32 = allowed
            with fake_cuda(tf32=True):
                seen = nn.functional.conv2d(image.cuda(), torch.ones(1, 1, 1, 1).cuda())
                assert seen.item() == expected
            with fake_cuda():
                assert (
                    nn.functional.conv2d(image.cuda(), torch.ones(1, 1, 1, 1).cuda()).item() == 1 + 2.0**-12
                )
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_after_the_block_there_is_no_device():
    with fake_cuda(free=123):
        y = x.cuda()
        assert torch.cuda.is_available()
        assert torch.cuda.mem_get_info("cuda")[0] == 123
    with pytest.raises(CardError, match="outside of its block"):
        y + y
    assert torch.Generator is torch._C.Generator
    assert not torch.__future__.get_swap_module_params_on_conversion()
