import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from errors import UserError
from models.resnet import build_model
from models.weights import load_file, load_pretrained, load_state, pretrained_state


def load(model, weights):
    load_pretrained(model, pretrained_state("resnet18", weights), f"--weights {weights}")


def same(one, other, *, head):
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for (key, a), b in pairs if key.startswith("fc.") == head)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The state dict of a ResNet-18 with 1000 classes, under a name that carries its hash as torchvision's do."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("web")
    torch.save(resnet18().state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    return (folder / "weights.pth").rename(folder / f"resnet18-{digest}.pth")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Lets torchvision's weights come from another address, into an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def serve(url: str) -> None:
        value = ResNet18_Weights.IMAGENET1K_V1.value
        monkeypatch.setattr(type(value), "__setattr__", object.__setattr__)
        monkeypatch.setattr(value, "url", url)

    return serve


def test_imagenet_weights_come_through_torchvision_and_leave_the_head(hub, published):
    hub(published.as_uri())
    torch.manual_seed(2)
    model, untouched = build_model("resnet18", 5), None
    torch.manual_seed(2)
    untouched = build_model("resnet18", 5)
    load(model, "imagenet")
    source = resnet18()
    source.load_state_dict(torch.load(published))
    assert same(model, source, head=False)
    assert same(model, untouched, head=True)
    assert model.fc.out_features == 5


def test_a_file_of_the_same_weights_does_as_well(published):
    model, source = build_model("resnet18", 5), resnet18()
    load(model, str(published))
    source.load_state_dict(torch.load(published))
    assert same(model, source, head=False)


@pytest.mark.parametrize("problem", ["no network", "other content"])
def test_what_cannot_be_had_is_one_line_with_both_ways_out(hub, published, tmp_path, problem):
    other = tmp_path / published.name
    other.write_bytes(b"an error page")
    hub("http://127.0.0.1:9/resnet18-00000000.pth" if problem == "no network" else other.as_uri())
    with pytest.raises(UserError) as error:
        load(build_model("resnet18", 5), "imagenet")
    message = str(error.value)
    assert "\n" not in message
    assert "--weights none" in message
    assert "--weights FILE" in message


def test_a_damaged_cached_file_is_named(hub, published, tmp_path):
    hub(published.as_uri())
    cached = tmp_path / "hub" / "hub" / "checkpoints" / published.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(published.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"delete {cached}"):
        load(build_model("resnet18", 5), "imagenet")


def test_version_two_exists_only_for_some():
    with pytest.raises(UserError, match="torchvision has none for resnet18"):
        load(build_model("resnet18", 5), "imagenet-v2")


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "content", ["text", "old format", "empty", "half", "pickle", "list", "other network", "numbers"]
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, monkeypatch, published, content):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.pth"
    if content == "text":
        file.write_text("not weights")
    elif content == "old format":
        torch.save({"a": torch.zeros(30)}, file, _use_new_zipfile_serialization=False)
        file.write_bytes(file.read_bytes()[:-55])
    elif content == "empty":
        file.touch()
    elif content == "half":
        file.write_bytes(published.read_bytes()[:-5000])
    elif content == "pickle":
        file.write_bytes(pickle.dumps(Malicious()))
    else:
        other = {"list": [1, 2], "other network": {"a.weight": torch.zeros(3)}, "numbers": {"conv1.weight": 7}}
        torch.save(other[content], file)
    with pytest.raises(UserError, match=r"w\.pth") as error:
        load(build_model("resnet18", 5), str(file))
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_file(tmp_path / "none.pt")


def test_a_shape_that_does_not_fit_is_named():
    state = {**build_model("resnet18", 5).state_dict(), "fc.weight": torch.zeros(7, 512)}
    with pytest.raises(UserError, match=r"fc\.weight is \(7, 512\) and should be \(5, 512\)"):
        load_state(build_model("resnet18", 5), state, "it")
