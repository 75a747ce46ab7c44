"""Hostile contents of a checkpoint: whatever stands in the parts that training goes on from, it is taken or refused."""

import copy
import json
import math

import pytest
import torch
from hostile import fuzzed
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from torch import nn
from torch.nn import functional

from plumage.engine.checkpoint import TrainingState
from plumage.engine.trainer import attach_training_metrics
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.recipe import Recipe

ROWS = [{"epoch": epoch, "iteration": 3 * epoch, "val_accuracy": 0.5} for epoch in (1, 2)]
HISTORY = "".join(json.dumps(row) + "\n" for row in ROWS)


def training(seed: int) -> TrainingState:
    """As much of a training as there is to restore: 10 pictures in batches of 4, so 3 steps an epoch."""
    torch.manual_seed(seed)
    model, average = (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)) for _ in range(2))
    groups = [{"params": [*model.parameters()], "lr_scale": 1.0, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, 0.1, 0.9, nesterov=True, fused=True)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)

    def step(engine, batch):
        optimizer.zero_grad()
        logits = model(batch)
        labels = torch.arange(len(batch)) % 2
        loss = functional.cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return {"loss": loss.detach(), "logits": logits.detach(), "labels": labels}

    trainer, recipe = Engine(step), Recipe(batch_size=4, epochs=5)
    metrics = attach_training_metrics(trainer, 3, torch.device("cpu"))
    machine = Machine(torch.device("cpu"), "fp16", compile=False)
    return TrainingState(trainer, model, average, optimizer, scaler, metrics, ["a", "b"], 10, recipe, machine)


def go_on(state: TrainingState, until: int) -> None:
    batches = (torch.randn((4, 4, 2)[number % 3], 3) for number in range(state.iteration, until))
    state.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=until), state.trainer.terminate)
    state.trainer.run(batches, max_epochs=5, epoch_length=3)


@pytest.fixture(scope="module")
def contents():
    """What is saved at an epoch's end, and inside an epoch."""
    state, found = training(3), []
    for until in (6, 8):
        go_on(state, until)
        found.append(state.content(epoch_done=until == 6, history=HISTORY))
    return found


class Sub(torch.Tensor):
    """torch calls this where it computes with one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("code of the file's runs")


def tensors():
    """What is no plain tensor of floats (2, 3), which the weights and momenta of the linear layer are."""
    whole = torch.ones(2, 3)
    yield from (whole[0], whole[:1], whole.T, whole.flatten(), torch.zeros(0, 3), torch.tensor(1.0), torch.tensor(3))
    yield from (torch.zeros(1).expand(2, 3), torch.zeros(1).expand(2**40), torch.tensor([True]))
    yield from (whole.to(kind) for kind in (torch.float64, torch.float16, torch.int64, torch.complex64, torch.bool))
    yield from (whole * math.nan, whole * math.inf, torch.tensor(math.nan), torch.tensor(-1), torch.tensor(2**62))
    yield from (whole.to_sparse(), whole.to_sparse_csr(), whole.to("meta"), nn.Parameter(whole))
    yield torch.quantize_per_tensor(whole, 1.0, 0, torch.qint8)
    yield torch.nested.nested_tensor([whole[0], whole[1, :2]])
    yield torch.Tensor._make_subclass(Sub, whole)
    yield whole.clone().requires_grad_()
    yield from (torch.zeros(9, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8).expand(2**40))
    for text in (
        '{"epoch": 1}\n',
        "[]\n",
        "null\n",
        '{"epoch": 3, "val_accuracy": 1.0}\n',
        HISTORY * 2,
        "[" * 9999,
        "\0",
    ):
        yield torch.tensor(list(text.encode()), dtype=torch.uint8)


OTHERS = ["text", "", None, math.nan, math.inf, -math.inf, -1, 0, 1, 2, 7, 2**31, 2**63, -(2**600), 0.0, 1.5, 1e300]
OTHERS += [1e-300, True, False, [], {}, (), [1], [[]], {"a": 1}, {0: None}, (1, 2), b"bytes", 3j]
with pytest.warns(UserWarning, match="sparse|nested|quantized"):  # of what is in an early stage
    ODD = [*OTHERS, *tensors()]


def places(value, path=()):
    """Yield the path to each value of nested containers."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def change(content, path, how, new):
    """Replace, remove or rename what is at ``path``, in place."""
    for key in path[:-1]:
        content = content[key]
    old = content.pop(path[-1]) if how != "replace" else None
    if how == "replace":
        content[path[-1]] = new
    elif how == "rename" and isinstance(content, dict):
        content[new if type(new) in (str, int, float, bool, bytes, tuple, type(None)) else "other"] = old


def take(content) -> TrainingState | None:
    """Restore ``content`` as a resume does: assert that it is refused in one line, or that training goes on from it."""
    state = training(5)
    owned = [values["momentum_buffer"].data_ptr() for values in state.optimizer.state.values()]
    groups = [{**group, "params": None} for group in state.optimizer.param_groups]
    try:
        reached = state.restore(content, "runs/x/last.pt")
    except UserError as error:
        message = str(error)
        assert message.startswith("runs/x/last.pt"), message
        assert len(message.splitlines()) == 1
        assert len(message) < 500
        return None
    assert type(reached.iteration) is int
    assert reached.iteration == state.iteration
    assert reached.rows is None or all(row["epoch"] <= reached.recorded for row in reached.rows)
    assert [values["momentum_buffer"].data_ptr() for values in state.optimizer.state.values()] == owned
    assert [{**group, "params": None} for group in state.optimizer.param_groups] == groups
    assert all(0 < metric.compute() < 1e9 or metric.compute() == 0 for metric in state.metrics.values())
    if state.iteration < 15:
        go_on(state, state.iteration + 1)
        assert 0 < state.scaler.get_scale() < math.inf
    return state


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return all(map(same, one, other)) if isinstance(one, list) else one == other


def test_what_was_saved_is_restored_to_the_bit(contents):
    for content in contents:
        state = training(5)
        reached = state.restore(copy.deepcopy(content), "it")
        assert (reached.recorded, reached.due, reached.rows) == (2, False, ROWS)
        again = state.content(content["epoch_done"], HISTORY)
        assert same(again, content)


def test_a_checkpoint_of_before_the_history_was_in_it_is_restored(contents):
    content = copy.deepcopy(contents[0])
    del content["history"]
    del content["recipe"]["ema"]  # an option that came later
    assert training(5).restore(content, "it").rows is None


def fresh(value):
    """Copy the containers, and share the tensors."""
    if isinstance(value, dict):
        return {key: fresh(item) for key, item in value.items()}
    return [fresh(item) for item in value] if isinstance(value, list) else value


@settings(fuzzed, max_examples=200)
@given(draw=st.data())
def test_changes_anywhere_are_refused_or_taken(contents, draw):
    whole = draw.draw(st.sampled_from(contents))
    content = fresh(whole)
    for _ in range(draw.draw(st.integers(1, 3))):
        path = draw.draw(st.sampled_from([*places(content)]))
        change(
            content, path, draw.draw(st.sampled_from(["replace", "remove", "rename"])), draw.draw(st.sampled_from(ODD))
        )
    take(content)


BAD = {
    "a momentum that is too small": (
        ("optimizer", "state", 2, "momentum_buffer"),
        torch.zeros(1),
        "momentum of parameter 2",
    ),
    "a momentum of one number": (("optimizer", "state", 2, "momentum_buffer"), "text", "momentum of parameter 2"),
    "a momentum of no numbers": (
        ("optimizer", "state", 2, "momentum_buffer"),
        torch.full((2, 3), math.nan),
        "no number",
    ),
    "no momentum": (("optimizer", "state"), {}, "momentum of parameter 0"),
    "another number of steps": (("trainer", "epoch_length"), 4, "4 steps, and not the 3 that the pictures make"),
    "a step after the last": (("trainer", "iteration"), 16, "iteration is no number from 1 to 15"),
    "a text": (("epoch_done",), "yes", "whether its epoch is done is not clear"),
    "no pictures": (("metrics", "loss", "__metric_state_per_rank", 0, "_num_examples"), 0, "not over the 10 pictures"),
    "more right than seen": (
        ("metrics", "accuracy", "__metric_state_per_rank", 0, "_num_correct"),
        torch.tensor(11),
        "_num_correct of its accuracy is no number from 0 to 10",
    ),
    "no scale": (("scaler", "scale"), 0.0, "scale of its gradients is no number above 0"),
    "another recipe": (("recipe", "momentum"), 0.5, "its --momentum is another than the run's"),
    "other classes": (("classes",), ["a", "c"], "of other classes"),
    "a later epoch": (
        ("history",),
        torch.tensor(list(b'{"epoch": 3, "val_accuracy": 1}\n'), dtype=torch.uint8),
        "2 epochs",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(contents, case):
    path, new, says = BAD[case]
    content = fresh(contents[0])
    change(content, path, "replace", new)
    with pytest.raises(UserError, match=rf"^it is no checkpoint of this run: .*{says}.*; start another --run$"):
        training(5).restore(content, "it")


def test_hyper_parameters_come_from_the_recipe(contents):
    content = fresh(contents[0])
    content["optimizer"]["param_groups"] = [{"lr": "text", "lr_scale": [], "momentum": None, "fused": 7, "params": 3}]
    assert take(content)


def test_the_same_bits_of_a_tensor_with_stride_0(contents):
    """It has the right shape, and the memory of one number: whoever writes to it by its shape writes outside."""
    content = fresh(contents[0])
    content["optimizer"]["state"][2]["momentum_buffer"] = torch.full((1,), 0.5).expand(2, 3)
    state = training(5)
    state.restore(content, "it")
    momentum = state.optimizer.state[state.model[1].weight]["momentum_buffer"]
    assert momentum.tolist() == [[0.5] * 3] * 2
    assert momentum.stride() == (3, 1)
    assert take(content)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_the_metrics_of_other_processes_are_summed(contents, processes):
    content = fresh(contents[0])
    whole = content["metrics"]["loss"]["__metric_state_per_rank"][0]
    parts = [{"_sum": torch.tensor(1.5), "_num_examples": 0} for _ in range(processes)]
    parts[0]["_num_examples"] = whole["_num_examples"]
    content["metrics"]["loss"] = {"__metric_state_per_rank": parts}
    state = training(5)
    state.restore(content, "it")
    assert state.metrics["loss"].compute() == pytest.approx(1.5 * processes / 10)
