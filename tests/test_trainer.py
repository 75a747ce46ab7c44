import numpy as np
import pytest
import torch
from ignite.engine import Events
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn
from torch.nn import functional

from plumage.data.loader import Batch, Shard
from plumage.engine.criterion import DistillationLoss, LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator
from plumage.engine.metrics import check_finite
from plumage.engine.trainer import attach_training_metrics, create_trainer
from plumage.hardware.device import Machine
from plumage.recipe import Recipe

CPU = torch.device("cpu")
MACHINE = Machine(CPU, "fp32", compile=False)


def toy(classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, classes)
    )


def batches(count, classes=4, size=8, last=5):
    generator = torch.Generator().manual_seed(1)
    sizes = [size] * (count - 1) + [last]
    return [
        Batch(
            i,
            torch.randint(256, (n, 2, 2, 3), dtype=torch.uint8, generator=generator),
            torch.randint(classes, (n,), generator=generator),
            Shard(np.arange(n), n),
        )
        for i, n in enumerate(sizes)
    ]


def view(images, iteration=0):
    return images.float() / 255 + 0.01 * iteration


def transform(images, labels, iteration, shard):
    return view(images, iteration), labels


def trainer_of(model, optimizer, criterion, transform=transform, scaler=None, distillation=None, **options):
    def loss(logits, targets, images):
        return criterion(logits, targets) + (distillation(logits, images) if distillation else 0)

    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    return create_trainer(model, optimizer, scaler, loss, transform, MACHINE, Recipe(**options))


def assert_same_weights(one, other):
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_step_is_that_of_a_plain_loop():
    data, criterion = batches(6), LabelSmoothingLoss(0.1, 4)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    model, plain = toy(), toy()
    trainer_of(model, torch.optim.SGD(model.parameters(), **options), criterion).run(data)
    optimizer = torch.optim.SGD(plain.parameters(), **options)
    for iteration, images, labels, _ in data:
        loss = criterion(plain(view(images, iteration)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_same_weights(model, plain)


def without_batchnorm(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def double(images, labels, iteration, shard):
    return view(images, iteration).double(), labels


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(parts):
    results = []
    for accumulate in (1, parts):
        model, teacher, losses = without_batchnorm(), without_batchnorm(seed=9), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        trainer = trainer_of(
            model,
            optimizer,
            nn.CrossEntropyLoss(),
            double,
            distillation=DistillationLoss(teacher, 2),
            accumulate=accumulate,
            clip_grad_norm=0.3,
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"]))  # noqa: B023
        trainer.run(batches(4, size=8, last=5), max_epochs=2)
        results.append((losses, [parameter.tolist() for parameter in model.parameters()], trainer.state.output))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2])


def test_each_part_has_the_two_pictures_that_batchnorm_needs():
    model, seen = toy(), []
    model.register_forward_hook(lambda model, images, logits: seen.append(len(logits)))
    trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), accumulate=4).run(batches(2))
    assert seen == [2, 2, 2, 2, 3, 2]


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_gradient_is_clipped_to_the_norm_whatever_it_is_scaled_by(scale):
    data, norm = batches(1), 0.01
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    model, plain = without_batchnorm().float(), without_batchnorm().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer_of(model, optimizer, nn.CrossEntropyLoss(), scaler=scaler, clip_grad_norm=norm).run(data)
    functional.cross_entropy(plain(view(data[0][1])), data[0][2]).backward()
    length = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()]).norm()
    assert length > 10 * norm
    for clipped, before in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(clipped, before - norm * before.grad / length)


def test_an_overflow_that_the_scaler_skips_is_no_divergence():
    model, scaler = without_batchnorm().float(), torch.amp.GradScaler("cpu", init_scale=3e38)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [parameter.tolist() for parameter in model.parameters()]
    trainer = trainer_of(
        model, optimizer, lambda logits, labels: 100 * functional.cross_entropy(logits, labels), scaler=scaler
    )
    loss = attach_training_metrics(trainer, 2, CPU)["loss"]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: check_finite(loss.compute(), 1, 1.0))
    trainer.run(batches(2))
    assert [parameter.tolist() for parameter in model.parameters()] == before
    assert scaler.get_scale() == pytest.approx(3e38 / 4, rel=1e-3)


def test_of_mixed_pictures_the_larger_share_is_the_label():
    targets = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.4, 0.6, 0.0]])
    model = toy()
    trainer = trainer_of(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.CrossEntropyLoss(),
        lambda *batch: (view(batch[0]), targets),
    )
    trainer.run([Batch(0, torch.zeros(2, 2, 2, 3, dtype=torch.uint8), torch.tensor([1, 1]), Shard(np.arange(2), 2))])
    assert trainer.state.output["labels"].tolist() == [0, 2]


def test_training_metrics_are_the_epochs_means_over_pictures():
    model, data, seen = toy(), batches(3), []
    trainer = trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    metrics = attach_training_metrics(trainer, 3, CPU)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(trainer.state.output))
    trainer.run(data, max_epochs=2)
    logits, labels = (torch.cat([output[key] for output in seen[3:]]) for key in ("logits", "labels"))
    assert metrics["accuracy"].compute() == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert metrics["loss"].compute() == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_evaluation_agrees_with_scikit_learn(classes):
    model, data = toy(classes), batches(5, classes)
    criterion = LabelSmoothingLoss(0.2, classes)
    evaluator = create_evaluator(model, criterion, view, MACHINE, classes)
    metrics = evaluator.run(data).metrics
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(view(images)) for _, images, _, _ in data])
    labels = torch.cat([labels for _, _, labels, _ in data])
    every = list(range(classes))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    if classes > 5:
        assert metrics["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every))
    else:
        assert metrics["top5"] == 1
    assert metrics["nll"] == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=every), rel=1e-5)
    assert metrics["loss"] == pytest.approx(criterion(logits, labels).item(), rel=1e-5)


def test_evaluation_changes_nothing_and_training_goes_on_in_training_mode():
    model, data = toy(), batches(3)
    evaluator = create_evaluator(model, nn.CrossEntropyLoss(), view, MACHINE, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluator.run(data)
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    trainer = trainer_of(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    trainer.run(data)
    assert model.training
