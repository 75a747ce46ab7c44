import json
import math
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Loss
from torch import nn

from plumage.engine.checkpoint import Saver, TrainingState
from plumage.engine.handlers import (
    attach_busy_notice,
    attach_ema,
    attach_freezing,
    attach_learning_rate,
)
from plumage.engine.metrics import check_weights
from plumage.engine.schedule import learning_rate
from plumage.engine.signals import StopSignals
from plumage.engine.train import attach_after_step, attach_at_epoch_end
from plumage.errors import Diverged, Stopped
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir


def rates(schedule="cosine", total=10, warmup=0, peak=0.4):
    return [learning_rate(iteration, total, warmup, peak, schedule) for iteration in range(total)]


def test_cosine_by_hand():
    rate = rates(total=8)
    assert rate[0] == 0.4
    assert rate[2] == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert rate[4] == pytest.approx(0.2)
    assert rate[7] == pytest.approx(0.2 * (1 - math.cos(math.pi / 8)))
    assert rate[7] > 0
    assert rate == sorted(rate, reverse=True)


def test_warm_up_by_hand():
    rate = rates(total=12, warmup=4)
    assert rate[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rate[4] == 0.4  # the first step after warm-up has the peak
    assert rate[8] == pytest.approx(0.2)
    assert rate[11] == pytest.approx(0.2 * (1 + math.cos(math.pi * 7 / 8)))
    assert rate[4:] == rates(total=8)


def test_warm_up_over_the_whole_training_divides_by_nothing():
    assert rates(total=2, warmup=2) == pytest.approx([0.2, 0.4])


def test_step_and_constant():
    assert rates("step", total=8) == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004, 0.0004, 0.0004])
    assert rates("constant", total=3, warmup=1) == pytest.approx([0.4, 0.4, 0.4])
    paper = rates("step", total=120)  # He et al. 2019, section 2: a tenth every 30 of 120 epochs
    assert [epoch for epoch in range(1, 120) if paper[epoch] != paper[epoch - 1]] == [30, 60, 90]


def test_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for rate in rates(total=50):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_each_step_is_taken_with_its_rate_times_its_groups_scale():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": scale} for scale in (1.0, 10.0)]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    seen = []
    trainer = Engine(lambda engine, batch: seen.append([group["lr"] for group in optimizer.param_groups]))
    attach_learning_rate(trainer, optimizer, lambda iteration: learning_rate(iteration, 6, 2, 0.4))
    trainer.run([0, 1, 2], max_epochs=2)
    assert seen == [[rate, 10 * rate] for rate in rates(total=6, warmup=2)]


def test_the_average_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    expected = {key: value.clone() for key, value in model.state_dict().items()}

    def step(engine, batch):
        with torch.no_grad():
            model[0].weight += torch.randn(4, 3)
        model(torch.randn(5, 3))

    trainer = Engine(step)
    average = attach_ema(trainer, model, 0.9)

    @trainer.on(Events.ITERATION_COMPLETED)
    def plain_loop():
        for key, value in model.state_dict().items():
            whole = value.dtype == torch.int64  # BatchNorm's count of batches
            expected[key] = value.clone() if whole else 0.9 * expected[key] + 0.1 * value

    trainer.run([0] * 5)
    assert not average.training
    for key, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    assert not torch.allclose(average[0].weight, model[0].weight)


def test_a_frozen_backbone_keeps_weights_and_statistics_while_the_head_learns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def step(engine, batch):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()

    def changed(before):
        return {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}

    trainer, states = Engine(step), [{key: value.clone() for key, value in model.state_dict().items()}]
    attach_freezing(trainer, model, model[2], 2)

    @trainer.on(Events.EPOCH_COMPLETED)
    def remember():
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        model.eval()  # as validation leaves it

    trainer.run([0, 0], max_epochs=2)
    assert changed(states[0]) == {"2"}
    trainer.run([0, 0], max_epochs=3)
    assert changed(states[2]) == {"0", "1", "2"}


def toy_state(losses, every=1, patience=0, batches=None, best="accuracy"):
    """A training whose loss at iteration i is ``losses[i]``, looked at every so many of them; two pictures a batch."""
    trainer = Engine(lambda engine, batch: {"loss": torch.tensor(losses[engine.state.iteration - 1])})
    loss = Loss(lambda loss, labels: loss, lambda output: (output["loss"], torch.zeros(2)))
    loss.attach(trainer, "loss")
    batches = batches or len(losses)
    recipe = Recipe(batch_size=2, epochs=len(losses) // batches, early_stopping=patience, best=best)
    return TrainingState(
        trainer=trainer,
        model=nn.Linear(1, 1),
        average=None,
        optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.25),
        scaler=torch.amp.GradScaler("cpu"),
        metrics={"loss": loss, "accuracy": SimpleNamespace(compute=lambda: 0.5, state_dict=dict)},
        classes=["a", "b"],
        pictures=2 * batches,
        recipe=recipe,
        machine=SimpleNamespace(look_every=every),
    )


class Saves:
    """In place of a Saver: at which iterations it was asked to save, and whether an epoch was done."""

    def __init__(self, state, due=False):
        self.state, self.due, self.asked, self.best = state, due, [], []

    def is_due(self):
        return self.due

    def save(self, epoch_done=False, best=False):
        self.asked.append((self.state.iteration, epoch_done))
        if best:
            self.best.append(self.state.trainer.state.epoch)


GOOD = {"loss": 2.0, "accuracy": 0.5, "balanced_accuracy": 0.25, "macro_f1": 0.5, "top5": 1.0, "nll": 1.5}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("at", "every", "caught"), [(2, 1, 2), (2, 3, 3), (5, 10, 6)])
def test_divergence_is_caught_at_the_next_look_and_before_the_epoch_is_saved(run, bad, at, every, caught):
    losses = [1.0] * 6
    losses[at - 1] = bad
    state = toy_state(losses, every)
    saves = Saves(state)
    attach_after_step(state, Engine(print), saves, StopSignals())
    attach_at_epoch_end(state, lambda: GOOD, saves, run.history)
    with pytest.raises(Diverged, match=f"at iteration {caught}, at a rate of 0.25: .*--lr"):
        state.trainer.run([0] * 6)
    assert saves.asked == []
    assert run.history == []


def test_weights_that_are_not_finite_are_divergence():
    good = {"weight": torch.zeros(3), "count": torch.tensor(3)}
    check_weights(good, 1, 0.25)
    for bad in (math.nan, math.inf):
        with pytest.raises(Diverged):
            check_weights({**good, "bias": torch.tensor([0.0, bad])}, 1, 0.25)


def test_a_finite_loss_is_left_alone(run):
    state = toy_state([1e30] * 6)
    saves = Saves(state)
    attach_after_step(state, Engine(print), saves, StopSignals())
    attach_at_epoch_end(state, lambda: GOOD, saves, run.history)
    state.trainer.run([0] * 6)
    assert saves.asked == [(6, True)]


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path)


def train_toy(run, accuracies, patience=0, due=False, best="accuracy"):
    """Epochs of two iterations whose validation gives ``accuracies``, or more than these. Returns what was saved."""
    values = iter(value if isinstance(value, dict) else {"accuracy": value} for value in accuracies)
    state = toy_state([1.0, 3.0] * len(accuracies), patience=patience, batches=2, best=best)
    saves = Saves(state, due)
    attach_after_step(state, Engine(print), saves, StopSignals())
    attach_at_epoch_end(state, lambda: {**GOOD, **next(values)}, saves, run.readable_history(best))
    state.trainer.run([0, 0], max_epochs=len(accuracies))
    return saves


def test_history_has_a_row_an_epoch(run, capsys):
    train_toy(run, [0.5, 0.7])
    rows = [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]
    timing = [{name: row.pop(name) for name in ("seconds", "images_per_second")} for row in rows]
    shared = {"lr": 0.25, "train_loss": 2.0, "train_accuracy": 0.5, "val_loss": 2.0, "val_top5": 1.0, "val_nll": 1.5}
    shared |= {"val_balanced_accuracy": 0.25, "val_macro_f1": 0.5}
    assert rows == [
        {"epoch": 1, "iteration": 2, "val_accuracy": 0.5, **shared},
        {"epoch": 2, "iteration": 4, "val_accuracy": 0.7, **shared},
    ]
    assert all(value >= 0 for times in timing for value in times.values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "epoch 1/2" in lines[0]
    assert "val loss 2.000 accuracy  50.0%" in lines[0]
    assert all(" *" in line for line in lines)  # each was the best so far


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.1, 0.5, 0.3], 2), ([0.5, 0.5, 0.4], 1), ([0.1, 0.2, 0.3], 3), ([0.0, 0.0], 1)]
)
def test_best_is_by_validation_accuracy_and_of_what_is_equal_in_all_the_earlier(run, accuracies, best):
    saves = train_toy(run, accuracies)
    assert run.history.best["epoch"] == best
    assert saves.best[-1] == best


def test_it_is_saved_at_each_epochs_end_and_inside_when_the_time_has_come(run):
    assert train_toy(run, [0.5, 0.7]).asked == [(2, True), (4, True)]
    assert train_toy(run, [0.5, 0.7], due=True).asked == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (4, False),
        (4, True),
    ]


def test_the_time_has_come_when_the_last_save_is_so_many_minutes_ago(run, monkeypatch):
    clock = 100.0
    monkeypatch.setattr("plumage.engine.checkpoint.perf_counter", lambda: clock)
    with Saver(toy_state([1.0]), run, run.history, minutes=2) as saver:
        clock = 219.0
        assert not saver.is_due()
        clock = 220.0
        assert saver.is_due()
        saver.state.trainer.run([0])
        saver.save()
        assert not saver.is_due()
        clock = 340.0
        assert saver.is_due()
    assert run.last.exists()


@pytest.mark.parametrize(
    ("patience", "epochs"),
    [(0, 6), (1, 2), (2, 5), (3, 6)],  # a tie is no better epoch
)
def test_early_stopping_is_after_so_many_epochs_without_a_better_one(run, patience, epochs):
    train_toy(run, [0.5, 0.5, 0.6, 0.4, 0.6, 0.1], patience)
    assert len(run.history) == epochs


CHOICES = [
    {"accuracy": 0.6, "balanced_accuracy": 0.30, "macro_f1": 0.5, "loss": 2.0},
    {"accuracy": 0.7, "balanced_accuracy": 0.40, "macro_f1": 0.5, "loss": 1.9},
    {"accuracy": 0.7, "balanced_accuracy": 0.40, "macro_f1": 0.5, "loss": 1.8},
    {"accuracy": 0.6, "balanced_accuracy": 0.50, "macro_f1": 0.5, "loss": 1.85},
    {"accuracy": 0.5, "balanced_accuracy": 0.45, "macro_f1": 0.5, "loss": 1.7},
    *[{"accuracy": 0.5, "balanced_accuracy": 0.40, "macro_f1": 0.5, "loss": 1.75}] * 3,
]


@pytest.mark.parametrize(
    ("best", "chosen", "epochs"),  # and at which epoch a patience of two ends
    [("accuracy", [1, 2, 3], 5), ("balanced-accuracy", [1, 2, 3, 4], 6), ("loss", [1, 2, 3, 5], 7)],
)
def test_what_makes_an_epoch_the_best_is_chosen(run, capsys, best, chosen, epochs):
    assert train_toy(run, CHOICES, best=best).best == chosen
    lines = capsys.readouterr().out.splitlines()
    assert [number for number, line in enumerate(lines, 1) if " *" in line] == chosen
    assert (" balanced  50.0%" in lines[3]) == (best == "balanced-accuracy")
    (run.path / "history.jsonl").unlink()
    train_toy(run, CHOICES, patience=2, best=best)
    assert len(run.history) == epochs


def test_an_epochs_end_that_is_made_up_for_has_no_speed(run):
    state = toy_state([1.0] * 6, batches=2)
    attach_at_epoch_end(state, lambda: GOOD, Saves(state), run.history)
    state.trainer.load_state_dict({"iteration": 2, "epoch_length": 2, "max_epochs": 3})
    state.metrics["loss"].update((torch.tensor(1.0), torch.zeros(2)))
    state.trainer.fire_event(Events.EPOCH_COMPLETED)
    assert run.history[0]["images_per_second"] == 0


def test_a_validation_that_is_not_finite_is_divergence_and_leaves_no_trace(run):
    state = toy_state([1.0])
    saves = Saves(state)
    attach_at_epoch_end(state, lambda: {**GOOD, "nll": float("nan")}, saves, run.history)
    with pytest.raises(Diverged):
        state.trainer.run([0])
    assert run.history == []
    assert saves.asked == []


@pytest.mark.parametrize("validating", [False, True])
def test_a_stop_signal_saves_after_the_step_and_ends(validating):
    signals, state = StopSignals(), toy_state([1.0] * 6)
    evaluator = Engine(lambda engine, batch: None)
    saves, engine = Saves(state), evaluator if validating else state.trainer
    attach_after_step(state, evaluator, saves, signals)

    @engine.on(Events.ITERATION_STARTED(once=3))
    def ask() -> None:
        signals.received = 15

    with pytest.raises(Stopped) as end:
        engine.run(range(6))
    assert engine.state.iteration == 3
    assert saves.asked == [(0 if validating else 3, False)]
    assert end.value.exit_code == 143


@pytest.mark.parametrize(
    ("steps", "share", "says"),
    [
        ([(3.1, 1, 1.5)] * 12, 2, "3.1 times"),
        ([(3.1, 1, 1.5)] * 11, 2, None),
        ([(0.31, 0.1, 0.15)] * 32, 2, None),  # not ten seconds
        ([(0.31, 0.1, 0.15)] * 33, 2, "3.1 times"),
        ([(1, 1, 1)] * 30 + [(3.1, 1, 1.5)] * 90, 2, "3.1 times"),
        ([(3.1, 1, 1.5), (3.1, 1, 1.5), (1, 1, 2)] * 4, 2, "3.1 times"),
        ([(1, 1, 2)] * 300, 2, None),  # a quiet machine, where a thread waits by computing
        ([(1.4, 1, 1.7)] * 300, 2, None),  # or asleep
        ([(60, 1, 2)] * 4 + [(1, 1, 2)] * 44, 2, None),  # compiling, or halted by Ctrl-Z
        ([(0.019, 0.005, 0.005)] * 300, 2, None),  # a tiny network, which waits for the interpreter
        ([(3, 1, 5)] * 300, 2, None),  # its own threads decode
        ([(4, 1, 1)] * 300, 0.25, None),  # a container with a quarter of a core, which it gets
        ([(8, 1, 1)] * 300, 0.25, "8.0 times"),  # and with half of that
    ],
)
def test_a_busy_machine_is_told_once(steps, share, says, caplog):
    """Each step's seconds of the wall, of its thread and of all threads."""
    now = [0.0, 0.0, 0.0]

    def step(engine, batch):
        now[:] = [before + taken for before, taken in zip(now, batch, strict=True)]

    trainer = Engine(step)
    clocks = [lambda number=number: now[number] for number in range(3)]
    attach_busy_notice(trainer, share, clocks)

    @trainer.on(Events.ITERATION_COMPLETED)
    def save():
        now[0] += 1000  # which is no part of a step

    trainer.run(steps)
    told = [record.message for record in caplog.records]
    assert len(told) == (says is not None)
    assert not says or says in told[0]
