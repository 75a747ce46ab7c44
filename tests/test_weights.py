import hashlib
import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from plumage.errors import UserError
from plumage.models.resnet import build_model
from plumage.models.weights import load_file, load_pretrained, load_state, pretrained_weights, state_dict_of

CLASSES = ["a", "b", "c", "d", "e"]


def load(model, weights):
    return load_pretrained(model, pretrained_weights("resnet18", str(weights)), CLASSES)


def same(one, other, *, head):
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for (key, a), b in pairs if key.startswith("fc.") == head)


def small(seed):
    """As much of a ResNet with five classes as the loader looks at."""
    torch.manual_seed(seed)
    layers = {"conv1": nn.Conv2d(3, 4, 7, bias=False), "bn1": nn.BatchNorm2d(4), "fc": nn.Linear(4, 5)}
    model = nn.Sequential(OrderedDict(layers)).to(memory_format=torch.channels_last)
    nn.init.uniform_(model.bn1.bias)
    return model


def refusal(weights, name="resnet18", model=None):
    """The one line that refuses ``weights``."""
    with pytest.raises(UserError) as error:
        load_pretrained(model or small(1), pretrained_weights(name, str(weights)), CLASSES)
    message = str(error.value)
    assert str(weights) in message
    assert "\n" not in message
    assert len(message) < 400
    return message


def saved(content, path):
    torch.save(content, path)
    return path


def timm_state(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=7).state_dict()


@pytest.fixture
def source():
    return small(seed=3)


@pytest.fixture
def model():
    return small(seed=4)


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
    model = build_model("resnet18", 5)
    torch.manual_seed(2)
    untouched = build_model("resnet18", 5)
    load(model, "imagenet")
    source = resnet18()
    source.load_state_dict(torch.load(published))
    assert same(model, source, head=False)
    assert same(model, untouched, head=True)
    assert model.fc.out_features == 5


FORMS = {
    "bare": lambda state: state,
    "of this project": lambda state: {"model": state, "classes": CLASSES, "recipe": {"model": "resnet18"}, "step": 7},
    "of a training script": lambda state: {"state_dict": state, "arch": "resnet18", "epoch": 3, "optimizer": {"lr": 1}},
    "named as well": lambda state: {"state_dict": state, "model": "resnet18"},
    "of a foreign script": lambda state: {"model": state, "recipe": "SGD", "classes": [0, 1, 2, 3, 4]},
    "of nobody knows what": lambda state: {"model": state, "recipe": {"model": {"depth": 18}}, "classes": 5},
    "parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "parallel, compiled": lambda state: {"model": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
    "compiled, parallel": lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    "float64": lambda state: {key: value.double() for key, value in state.items()},
    "without a head": lambda state: {key: value for key, value in state.items() if not key.startswith("fc.")},
    "another head": lambda state: {**state, "fc.1.weight": torch.zeros(9, 4)},
    "before counters": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_weights(source, model, tmp_path, form):
    load(model, saved(FORMS[form](source.state_dict()), tmp_path / "w.pth"))
    assert same(model, source, head=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_converted(source, model, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in source.state_dict().items()}
    load(model, saved(state, tmp_path / "w.bin"))
    assert same(model, source.to(dtype).float(), head=False)
    assert model.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_timm(tmp_path, suffix):
    model = build_model("resnet18", 5)
    torch.manual_seed(5)
    other, path = timm.create_model("resnet18", num_classes=9).eval(), tmp_path / f"w.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(other.state_dict(), path)
    assert load(model, path) is False
    image = torch.rand(2, 3, 64, 64)
    features = nn.Sequential(*list(model.eval().children())[:-1])(image).flatten(1)
    torch.testing.assert_close(features, other.forward_head(other.forward_features(image), pre_logits=True))


def test_a_file_of_torchvision(published):
    model, other = build_model("resnet18", 5), resnet18()
    other.load_state_dict(torch.load(published))
    assert load(model, published) is False
    assert same(model, other, head=False)


def test_the_counters_that_an_old_file_lacks_stay_as_they_are(source, model, tmp_path):
    model.bn1.num_batches_tracked.fill_(11)
    load(model, saved(FORMS["before counters"](source.state_dict()), tmp_path / "w.pth"))
    assert model.bn1.num_batches_tracked == 11


def test_the_head_is_taken_over_for_classes_whose_names_are_in_another_of_unicodes_forms(source, model, tmp_path):
    file = saved({"model": source.state_dict(), "classes": [*CLASSES[:-1], "e\u0301"]}, tmp_path / "w.pt")
    assert load_pretrained(model, pretrained_weights("resnet18", str(file)), [*CLASSES[:-1], "\u00e9"])
    assert same(model, source, head=True)


@pytest.mark.parametrize(
    ("classes", "taken"), [(CLASSES, True), (CLASSES[::-1], False), (CLASSES[:4], False), (None, False)]
)
def test_the_head_is_taken_over_for_the_same_classes_in_the_same_order(source, model, tmp_path, classes, taken):
    assert load(model, saved({"model": source.state_dict(), "classes": classes}, tmp_path / "w.pt")) is taken
    assert same(model, source if taken else small(seed=4), head=True)
    assert same(model, source, head=False)


def test_a_checkpoint_of_another_network_is_refused_even_where_the_shapes_are_the_same(tmp_path):
    state = timm_state("resnet50")
    path = saved({"model": state, "recipe": {"model": "resnet50"}}, tmp_path / "w.pt")
    assert "of a 'resnet50', not of a resnet50v1; take that as --model" in refusal(path, "resnet50v1")
    assert pretrained_weights("resnet50", str(path)).state.keys() == state.keys()


STEMS = ["the plain stem, one 7×7 convolution", "the stem of ResNet-C and -D, three 3×3 convolutions"]
SHORTCUTS = [
    "shortcuts that down-sample by a strided convolution",
    "the down-sampling shortcuts of ResNet-D, with average pooling",
]


@pytest.mark.parametrize(
    ("given", "name", "has", "wants"),
    [
        ("resnet50", "resnet50c", *STEMS),
        ("resnet50", "resnet50d", *STEMS),
        ("resnet50c", "resnet50", *STEMS[::-1]),
        ("resnet50d", "resnet50", *STEMS[::-1]),
        ("resnet50d", "resnet50v1", *STEMS[::-1]),
        ("resnet50c", "resnet50d", *SHORTCUTS),
        ("resnet50d", "resnet50c", *SHORTCUTS[::-1]),
    ],
)
def test_what_is_built_otherwise_is_refused_with_the_reason(tmp_path, given, name, has, wants):
    with torch.device("meta"):
        model = build_model(name, 5)
    message = refusal(saved(timm_state(given), tmp_path / "w.pth"), name, model)
    assert f"they have {has}, and it has {wants}; take weights of the same network" in message


def test_other_keys_are_refused_with_the_first_on_each_side(source, tmp_path):
    state, path = source.state_dict(), tmp_path / "w.pth"
    assert "model: superfluous is 'epoch' (1 of 2); take" in refusal(saved({**state, "epoch": 3, "lr": 0.1}, path))
    assert "superfluous is '0' (1 of 1)" in refusal(saved({**state, 0: torch.zeros(3)}, path))
    assert "superfluous is 'module.bn1.bias' (1 of 1)" in refusal(saved({**state, "module.bn1.bias": 0}, path))
    assert "superfluous is 'line\\nlinexxxx" in refusal(saved({**state, "line\nline" + "x" * 999: 0}, path))
    del state["bn1.bias"], state["bn1.running_var"]
    assert "missing is 'bn1.bias' (1 of 2); take" in refusal(saved(state, path))
    message = refusal(saved({**state, "beta": torch.zeros(4)}, path))
    assert "missing is 'bn1.bias' (1 of 2) and superfluous is 'beta' (1 of 1)" in message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(2), "bn1.bias is (2,) and should be (4,)"),
        (torch.zeros(4, dtype=torch.int64), "bn1.bias is no dense tensor of floats"),
        (torch.zeros(4, dtype=torch.complex64), "bn1.bias is no dense tensor of floats"),
        (torch.zeros(4, device="meta"), "bn1.bias is no dense tensor of floats"),
        ([0.0] * 4, "bn1.bias is a list and should be (4,)"),
    ],
)
@pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning")
def test_other_values_are_refused(source, tmp_path, value, says):
    assert says in refusal(saved({**source.state_dict(), "bn1.bias": value}, tmp_path / "w.pth"))


@pytest.mark.filterwarnings("ignore:.*sparse:UserWarning")
def test_a_sparse_tensor_is_refused(source, tmp_path):
    state = {**source.state_dict(), "bn1.bias": torch.eye(4)[0].to_sparse()}
    assert "holds more than weights and plain values" in refusal(saved(state, tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"bn1\.bias is no dense tensor of floats"):
        load_state(source, state, "it")


@pytest.mark.parametrize("content", ["half", "text", "empty", "pickle"])
def test_a_damaged_safetensors_file_is_refused_by_name(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.safetensors"
    half = safetensors.torch.save({"bn1.bias": torch.zeros(9)})[:-20]
    path.write_bytes({"half": half, "text": b"not weights", "empty": b"", "pickle": pickle.dumps(Malicious())}[content])
    assert "is no checkpoint, or a damaged one" in refusal(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_neither_a_folder_nor_nothing_is_a_file(tmp_path, suffix):
    folder = tmp_path / f"w.{suffix}"
    for _ in range(2):  # nothing yet, then a folder
        assert "no such file; give one, or a run, imagenet, imagenet-v2 or none" in refusal(folder)
        with pytest.raises(UserError, match="does not exist, or is no file"):
            load_file(folder)
        folder.mkdir(exist_ok=True)


def test_a_checkpoint_with_more_than_weights_says_how_to_do_without(source, tmp_path):
    path = saved({"model": source.state_dict(), "args": Namespace(lr=0.1)}, tmp_path / "w.pth")
    assert "save its weights alone, torch.save(model.state_dict(), FILE)" in refusal(path)


def test_a_checkpoint_is_also_loaded_whole(source, model, tmp_path):
    path = saved({"state_dict": FORMS["parallel"](source.state_dict())}, tmp_path / "w.pth")
    load_state(model, state_dict_of(load_file(path)), "it")
    assert same(model, source, head=False)
    assert same(model, source, head=True)


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
    assert "torchvision has none for resnet18; take --weights imagenet" in refusal("imagenet-v2")


@pytest.mark.parametrize("name", ["resnet50v1", "resnet50c", "resnet50d"])
@pytest.mark.parametrize("weights", ["imagenet", "imagenet-v2"])
def test_torchvision_has_resnet50_in_one_variant(name, weights):
    ways_out = "take --weights FILE with timm's, --weights none, or --model resnet50"
    assert f"torchvision has none for {name}; {ways_out}" in refusal(weights, name)


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


def test_a_shape_that_does_not_fit_is_named():
    state = {**build_model("resnet18", 5).state_dict(), "fc.weight": torch.zeros(7, 512)}
    with pytest.raises(UserError, match=r"fc\.weight is \(7, 512\) and should be \(5, 512\)"):
        load_state(build_model("resnet18", 5), state, "it")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=str)
def test_a_file_is_not_blamed_for_too_little_memory(tmp_path, monkeypatch, error):
    def run_out(*_, **__):
        raise error

    torch.save({}, tmp_path / "sound.pt")
    monkeypatch.setattr(torch, "load", run_out)
    with pytest.raises(type(error)):
        load_file(tmp_path / "sound.pt")
