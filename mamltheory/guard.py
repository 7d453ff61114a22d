"""The checks of a network and of samples that every public function makes before it computes anything.

A kernel k(x, x') exists when f_θ(x) depends on x and θ alone: not on the other samples of a batch, their order, or
chance. That is tested on all samples, and a message names everything on which torch would fail.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.head import find_head
from mamltheory.modules import (
    call_module,
    check_module,
    holds_graph,
    is_samplewise,
    probe_weights,
    refuse_checkpointing,
    rescaled_weights,
    unknown_parts,
    unwrapped,
)
from mamltheory.networks import (
    Model,
    check_finite,
    from_module,
    in_transform,
    named_head,
    output_of,
    title_of,
)
from mamltheory.rng import generator
from mamltheory.tasks import Parameters, Task, check_dense, check_tasks

BATCH, FEWEST = 128, 8
"""The most samples in a batch of the comparison, and the least value of that: one sample alone could not mix."""


def as_model(model: Model | nn.Module, params: Parameters | None = None) -> tuple[Model, Parameters]:
    """A network as a pure function and its parameters, from either form in which a user may hold it.

    Parameters of other shapes are a ShapeError, NaN or infinite entries a ValueRangeError.

    Args:
        model: a torch module, or a Model.
        params: the parameters; None for those that a module holds.

    Returns:
        The model and its parameters, copied where the forward pass of a module could write to them.

    Raises:
        ConfigurationError: a Model comes without parameters, or the names are not the network's.
        UnsupportedModelError: complex parameters, or a network that :func:`mamltheory.modules.check_module` refuses.
    """
    held: Parameters | None = None
    if isinstance(model, nn.Module):
        model, held = from_module(model)
        params = held if params is None else params
    elif not isinstance(model, Model):
        raise ConfigurationError(
            f"the network is a {type(model).__name__}: expected a torch.nn.Module or a mamltheory.Model"
        )
    elif model.module is not None:
        check_module(model.module)
    if params is None:
        raise ConfigurationError("a pure Model holds no parameters: pass params=net.initialise(generator)")
    if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
        raise ConfigurationError(
            f"params is a {type(params).__name__}: expected a dict from names to tensors, or None"
        )
    if model.module is not None and params is not held:
        params = _module_parameters(params, model.module)
    for name, value in params.items():
        if value.is_complex():
            raise UnsupportedModelError(
                f"parameter {name!r} is {value.dtype}: expected real numbers; hold real and imaginary parts apart"
            )
        if value.is_inference():
            raise ConfigurationError(
                f"parameter {name!r} was made in torch.inference_mode(), without gradients: clone() it outside"
            )
    check_finite(params)
    unknown = {} if model.module is None else unknown_parts(model.module)
    if any(list(part.parameters()) for part in unknown.values()):
        params = {name: value.clone() for name, value in params.items()}  # that part could write to them
    return model, params


def _module_parameters(params: Parameters, module: nn.Module) -> Parameters:
    """The module's parameters among ``params``; buffers among them, as in a state_dict, must equal the module's."""
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = dict(module.named_buffers(remove_duplicate=False))
    missing, other = set(shapes) - set(params), set(params) - tied - set(buffers)
    for prefix in ("module.", "_orig_mod."):
        if missing and {name.removeprefix(prefix) for name in other} >= missing:
            raise ConfigurationError(
                f"the names in params begin with {prefix!r}, those of a wrapped network: strip it by "
                f"{{name.removeprefix({prefix!r}): value for name, value in params.items()}}"
            )
    if missing or other:
        raise ConfigurationError(
            f"params lacks {sorted(missing)} and has {sorted(other)} besides the network's parameters: "
            f"expected {sorted(shapes)}"
        )
    for name in set(params) & set(buffers):
        if not torch.equal(params[name], buffers[name]):
            raise ConfigurationError(
                f"params has another value of buffer {name!r} than the module: load_state_dict(params) first"
            )
    for name, shape in shapes.items():
        if tuple(params[name].shape) != shape:
            raise ShapeError(
                f"parameter {name!r} has shape {tuple(params[name].shape)}: the network's has {shape}"
            )
    return {name: params[name] for name in params if name in shapes}


def checked_samples(model: Model, params: Parameters, x: Tensor, name: str = "samples") -> Tensor:
    """The samples, if the network can be run on them.

    Args:
        model: the network.
        params: its parameters.
        x: the samples, n × ….
        name: what to call them in messages.

    Returns:
        The same samples.

    Raises:
        ShapeError: not a dense real tensor with axes, or not of the weights' dtype.
        ConfigurationError: on another device than the weights, or made in inference mode.
        ValueRangeError: NaN or infinite entries.
        UnsupportedModelError: the network computes with a tensor that an earlier call has stored.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"the {name} are a {type(x).__name__}: expected a tensor; convert them with torch.as_tensor(...)"
        )
    check_dense(name, x)
    integers = not x.is_floating_point()
    if (
        x.dim() < 2
        or 0 in x.shape
        or x.is_complex()
        or x.dtype == torch.bool
        or (integers and _is_samplewise(model))
    ):
        raise ShapeError(
            f"got {name} of shape {tuple(x.shape)} and dtype {x.dtype}: expected floating-point samples × dimensions "
            "(or integers, for a network that takes them)"
        )
    if model.network is not None:
        model.network.check(params, x)
    if x.is_inference():
        raise ConfigurationError(f"the {name} were made in torch.inference_mode(): clone() them outside")
    if params and x.device not in {value.device for value in params.values()}:
        raise ConfigurationError(
            f"the {name} are on {x.device} and the parameters on {next(iter(params.values())).device}: "
            "move one of them with .to(device)"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueRangeError(f"the {name} contain NaN or infinite entries: clean the data first")
    values = list(params.values())
    if values and not integers and x.dtype not in {value.dtype for value in values}:
        raise ShapeError(
            f"the {name} are {x.dtype} and the parameters {values[0].dtype}: convert one of them with .to(dtype)"
        )
    if model.module is not None and holds_graph(model.module):
        with torch.enable_grad():
            kept = output_of(model, {key: value.detach() for key, value in params.items()}, x[:1])
        if kept.requires_grad:
            raise UnsupportedModelError(
                f"{title_of(model)} computes with a tensor that an earlier call of it has stored in an attribute, made "
                "from weights: no gradient by the weights sees it; clear that cache first"
            )
    return x


def _is_samplewise(model: Model) -> bool:
    """Whether the network is of Eq. (16) or made of layers that are known to keep samples apart."""
    return model.network is not None or (model.module is not None and is_samplewise(model.module))


def check_independent(
    model: Model, params: Parameters, x: Tensor, batch: int | None = None, sizes: Collection[int] = ()
) -> Float[Tensor, "n k"]:
    """f_θ(x), after a test that the output and gradient of a sample depend on no other sample and not on chance.

    The samples run twice: in their order, and in a random order cut into batches of other sizes, one of them a single
    sample. Networks of Eq. (16) and of layers that are known to keep samples apart run on one sample.

    An UnsupportedModelError says that the network mixes samples, draws at random, or checkpoints activations; a
    ValueRangeError that outputs are not finite. Other errors are those of :func:`mamltheory.networks.output_of`.

    Args:
        model: the network.
        params: its parameters.
        x: samples n × ….
        batch: the most samples of a batch (BATCH), at least FEWEST.
        sizes: sizes of batches that the network will see. They are tried as well, because a network may take the
            batch for another axis of just that length.

    Returns:
        The outputs; those of the first sample alone, where no other was run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would be about batches that the user did not ask for
        return _compared(model, params, x, max(batch or BATCH, FEWEST), sizes)


def _compared(model: Model, params: Parameters, x: Tensor, batch: int, sizes: Collection[int]) -> Tensor:
    if _is_samplewise(model):
        with torch.no_grad():
            outputs = output_of(model, params, x[:1])
        check_finite_outputs(outputs)
        return outputs
    order = other_batches(len(x), batch)
    whole, gradients = _weighted(model, params, x, torch.arange(len(x)).split(batch))
    check_finite_outputs(whole)
    again, others = _weighted(model, params, x, order)
    # a sum over samples may cancel and leave rounding errors of the size of its terms: all gradients set the scale
    size = max([float(gradient.abs().max()) for gradient in gradients if gradient.numel()], default=0.0)
    largest = float(whole.abs().max())
    alike = _close(again, whole[torch.cat(order).to(x.device)], largest)
    for size_seen in set(sizes):
        with torch.no_grad():
            seen = output_of(model, params, x[-size_seen:])
        alike = alike and seen.shape[1] == whole.shape[1] and _close(seen, whole[-size_seen:], largest)
    if not alike or not all(_close(one, two, 10 * size) for one, two in zip(others, gradients, strict=True)):
        raise UnsupportedModelError(
            f"{title_of(model)} gives a sample another output or gradient alone or in another batch: some module of it "
            "mixes samples, draws at random, changes its own state, or computes in lower precision than its outputs "
            "have, so that no kernel of single samples exists; call .eval() on it, use GroupNorm, or give layers their "
            "batch axis (batch_first=True)"
        )
    return whole


def _weighted(
    model: Model, params: Parameters, x: Tensor, batches: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of all batches, and the gradients of their weighted sum; none in a transform of torch.func."""
    moving = {name: v for name, v in model.moving(params).items() if v.is_floating_point()}
    leaves = {} if in_transform(moving) else {name: v.detach().requires_grad_() for name, v in moving.items()}
    totals = [torch.zeros_like(value) for value in leaves.values()]
    outputs: list[Tensor] = []
    for batch in batches:
        with torch.set_grad_enabled(bool(leaves)):
            output = output_of(model, {**params, **leaves}, x[batch.to(x.device)])
        if leaves and output.requires_grad:
            refuse_checkpointing(output)
            cotangent = probe_weights(batch, output)[:, None].expand_as(output)
            parts = torch.autograd.grad(
                output, list(leaves.values()), cotangent, allow_unused=True, materialize_grads=True
            )
            totals = [total + part for total, part in zip(totals, parts, strict=True)]
        if outputs and output.shape[1] != outputs[0].shape[1]:
            raise UnsupportedModelError(
                f"{title_of(model)} has {outputs[0].shape[1]} outputs in one batch and {output.shape[1]} in another: "
                "it mixes samples"
            )
        outputs.append(output.detach())
    return torch.cat(outputs), totals


def _close(one: Tensor, two: Tensor, size: float) -> bool:
    return bool(((one - two).abs() <= 1e3 * torch.finfo(one.dtype).eps * size).all())


def check_finite_outputs(outputs: Tensor) -> None:
    """Raises ValueRangeError for outputs with NaN or infinite entries."""
    if not bool(outputs.isfinite().all()):
        raise ValueRangeError(
            "the network's outputs have NaN or infinite entries though weights and samples are finite: "
            "rescale the weights or the samples, or use float64"
        )


def other_batches(n: int, most: int) -> list[Tensor]:
    """Indices of n samples in a random order, in batches of a single sample and of about half of ``most``."""
    order = torch.randperm(n, generator=generator(0, "order of samples"))
    size = max((min(n - 1, most) + 1) // 2, 1)
    return [order[:1], *(order[1:].split(size) if n > 1 else ())]


def _has_no_values(params: Parameters) -> bool:
    """Whether the parameters are batched by torch.func.vmap, so that no decision can depend on their values."""
    try:
        for value in params.values() if isinstance(params, Mapping) else ():
            bool(value.isnan().any())
            break
    except RuntimeError:
        return True
    return False


def with_head(model: Model, params: Parameters, x: Tensor, head: Collection[str] | None = None) -> Model:
    """The model with the names of its last linear layer's parameters.

    An UnsupportedModelError says that it has no such layer, a ConfigurationError that ``head`` names no parameter.

    Args:
        model: the network.
        params: its parameters.
        x: samples on which the layer is found, where the model does not know it.
        head: the names, where the user gives them.

    Returns:
        The model, with ``head`` filled.
    """
    if head is not None:
        return replace(model, head=named_head(head, params))
    if model.head is not None or model.module is None:
        return model
    check_independent(model, params, x[:FEWEST])  # the head is found on samples
    bare = replace(model, function=partial(call_module, model.module))  # centred or linearised: the same head
    return replace(model, head=find_head(bare, params, x))


def ready_for_tasks(
    model: Model | nn.Module, params: Parameters | None, tasks: Sequence[Task], algorithm: str = "maml"
) -> tuple[Model, Parameters]:
    """A network and its parameters, checked on the samples and labels of all tasks.

    Other errors are those of :func:`as_model`, :func:`checked_samples`, :func:`check_independent` and
    :func:`with_head`.

    Args:
        model: a Model, or a torch module.
        params: its parameters; None for those that a module holds.
        tasks: the tasks.
        algorithm: "maml" or "anil", for which the head is found.

    Returns:
        The model and its parameters.

    Raises:
        UnsupportedModelError: the forward pass writes to parameters.
        ShapeError: labels that do not fit the network's outputs.
    """
    tasks = check_tasks(tasks)
    if isinstance(model, Model) and params is not None and _has_no_values(params):
        return model, params
    held = dict(unwrapped(model).named_parameters()) if isinstance(model, nn.Module) else {}
    model, values = as_model(model, params)
    x = torch.cat([part for task in tasks for part in (task.query_x, task.support_x)])
    checked_samples(model, values, x, "tasks' samples")
    given = held if params is None else params
    sizes = {len(part) for task in tasks for part in (task.query_x, task.support_x)}
    outputs = check_independent(model, values, x, sizes=sizes)
    written = {name for name, v in values.items() if v is not given[name] and not torch.equal(v, given[name])}
    written |= rescaled_weights(model.module) if model.module is not None else frozenset()
    if written:
        raise UnsupportedModelError(
            f"the forward pass writes to parameters {sorted(written)} (max_norm, or clipping in place): an inner loop "
            "that starts from them is not a function of them; write it without changes in place"
        )
    check_labels(tasks[0], outputs.shape[1])
    labels = tasks[0].query_y
    if labels.dtype != outputs.dtype:
        raise ShapeError(
            f"the labels are {labels.dtype} and the network's outputs {outputs.dtype}: convert with Task.to(dtype)"
        )
    return with_head(model, values, x) if algorithm == "anil" else model, values


def check_labels(task: Task, outputs: int) -> None:
    """A ShapeError unless the labels of a task have one column for each of the network's ``outputs``."""
    labels = task.query_y
    if labels.shape[1] == outputs:
        return
    indices = labels.shape[1] == 1 and bool((labels == labels.round()).all())
    raise ShapeError(
        f"the tasks have labels of {labels.shape[1]} numbers, expected {outputs}, one for each output of the network"
        + ("; class indices become one-hot rows by torch.nn.functional.one_hot(y, k)" if indices else "")
    )
