"""The real command: what it writes is read by other programs, on real pictures."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import timm
import torch
import torchvision
from conftest import CLIPART, ROOT, TINY, draw_photos

import plumage.inference.export
from plumage.data.augment import MEAN, STD
from plumage.data.decode import Square, decode
from plumage.inference.export import FITS
from plumage.inference.formats import FORMATS, write_pt2
from plumage.main import export as cli_export
from plumage.models.weights import trained_model
from plumage.recipe import Recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on real pictures, where they are there: 112 of them validate."""
    home = tmp_path_factory.mktemp("home")
    if not CLIPART.is_dir():
        draw_photos(home / "photos")
    data = CLIPART / "labelled" if CLIPART.is_dir() else home / "photos"
    command = ["train", "--data", data, *TINY, "--epochs", "1", "--cache", home / "cache", "--run", home / "run"]
    command += ["--lr", "0.01"]
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return home / "run"


@pytest.fixture
def export(cli, run, tmp_path):
    def call(name, *arguments):
        code, out, err = cli("export", "--run", run, "-o", tmp_path / name, *arguments)
        return code, out, err.splitlines()[-1] if err else ""

    return call


@pytest.fixture(scope="module")
def reference(run):
    """Crops (n, 32, 32, 3) uint8 of real pictures, and the checkpoint's logits of them by a plain forward pass."""
    recipe, classes = (json.loads((run / f"{name}.json").read_text()) for name in ("recipe", "classes"))
    folder = CLIPART / "unlabelled" if CLIPART.is_dir() else run.parent / "photos"
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".png", ".jpg"))
    crops = np.stack([decode(file, Square(36)).pixels[2:34, 2:34] for file in files])
    model = trained_model(run / "checkpoints" / "best.pt", "", classes, recipe["model"]).eval()
    with torch.inference_mode():
        return crops, model(normalised(crops))


def normalised(crops):
    images = (torch.from_numpy(crops).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2).contiguous()


def check_metadata(found, run):
    recipe, classes = (json.loads((run / f"{name}.json").read_text()) for name in ("recipe", "classes"))
    found = {key: json.loads(found[key]) for key in ("classes", "recipe", "normalisation", "temperature")}
    assert (found["classes"], found["recipe"], found["temperature"]) == (classes, recipe, 1.0)
    assert found["normalisation"] == {"mean": list(MEAN), "std": list(STD)}


@pytest.mark.parametrize("options", [[], ["--normalised-input"]], ids=["uint8", "normalised"])
def test_onnx_by_its_own_runtime(export, run, reference, tmp_path, options):
    code, out, err = export("m.onnx", *options)
    assert code == 0, err
    count = 112 if CLIPART.is_dir() else 6
    assert "ONNX opset 18" in out
    assert f"the same class for {count} of {count} pictures" in out
    assert float(out.partition("largest difference of logits ")[2].partition(",")[0]) < 1e-4
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (given,) = session.get_inputs()
    shape, kind = ([3, 32, 32], "tensor(float)") if options else ([32, 32, 3], "tensor(uint8)")
    assert (given.name, given.shape[1:], given.type) == ("pictures", shape, kind)
    assert isinstance(given.shape[0], str)
    check_metadata(session.get_modelmeta().custom_metadata_map, run)
    crops, logits = reference
    views = normalised(crops).numpy() if options else crops
    for size in (1, 7, len(views)):
        (found,) = session.run(None, {"pictures": views[:size]})
        assert np.abs(found - logits[:size].numpy()).max() < 1e-4
        assert np.array_equal(found.argmax(1), logits[:size].numpy().argmax(1))


def test_safetensors_in_timms_and_torchvisions_own_model(export, run, reference, tmp_path):
    assert export("m.safetensors")[0] == 0
    crops, logits = reference
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        check_metadata(file.metadata(), run)
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32, torch.int64}  # noqa: SIM118
    classes = len(json.loads((run / "classes.json").read_text()))
    theirs = torchvision.models.resnet18(num_classes=classes)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "m.safetensors"))
    other = timm.create_model("resnet18", num_classes=classes, checkpoint_path=tmp_path / "m.safetensors")
    for model in (theirs, other):
        with torch.inference_mode():
            assert (model.eval()(normalised(crops)) - logits).abs().max() < 1e-5


def test_torch_export(export, run, reference, tmp_path):
    crops, logits = reference
    code, out, err = export("m.pt2")
    assert code == 0, err
    assert "largest difference" in out
    extra = dict.fromkeys(("classes", "recipe", "normalisation", "temperature"), "")
    with (tmp_path / "m.pt2").open("rb") as file:
        model = torch.export.load(file, extra_files=extra).module()
    check_metadata(extra, run)
    for size in (1, 7):
        assert (model(torch.from_numpy(crops[:size])) - logits[:size]).abs().max() < 1e-5


@pytest.mark.parametrize("arguments", [["m.torchscript"], ["m.ts", "--format", "torchscript"]])
def test_torchscript_is_refused_with_the_reason_and_its_successor(export, tmp_path, arguments):
    code, out, err = export(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: --format torchscript" if "--format" in arguments else "error: --output ")
    assert "torch deprecates TorchScript" in err
    assert "--format pt2" in err
    assert not list(tmp_path.glob("m.*"))


def test_the_command_line_offers_every_format(cli):
    (option,) = [option for option in cli_export.params if option.name == "format"]
    assert {*option.metavar.strip("[]").split("|")} == {form.name for form in FORMATS.values()}
    _, out, _ = cli("export", "--help")
    assert "torchscript" not in out


@pytest.mark.parametrize("change", [lambda weights: weights + 0.01, lambda weights: weights * float("nan")])
def test_what_differs_is_not_kept(export, tmp_path, monkeypatch, change):
    def damaged(network, *arguments):
        weight = network.model.get_submodule("fc").weight
        kept, weight.data = weight.data, change(weight.data)
        write_pt2(network, *arguments)
        weight.data = kept

    monkeypatch.setitem(FORMATS, ".pt2", replace(FORMATS[".pt2"], write=damaged))
    (tmp_path / "m.pt2").write_text("the one before")
    code, out, err = export("m.pt2", "--force")
    assert (code, out) == (2, "")
    assert err.startswith("error: --format pt2: logits differ by ")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("m.")] == ["m.pt2"]
    assert (tmp_path / "m.pt2").read_text() == "the one before"


def test_an_average_of_weights_is_what_is_exported(run, export, tmp_path):
    """With --ema, a checkpoint's "model" is the average, and "online" what was trained."""
    saved = torch.load(run / "checkpoints" / "best.pt")
    saved["online"] = {key: torch.zeros_like(value) for key, value in saved["model"].items()}
    torch.save(saved, tmp_path / "ema.pt")
    assert export("m.safetensors", "--checkpoint", tmp_path / "ema.pt")[0] == 0
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["fc.weight"], saved["model"]["fc.weight"])


def test_bad_use_is_one_line_and_writes_nothing(cli, run, export, tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("no picture")
    before = sorted(tmp_path.rglob("*"))
    for arguments, says in (
        (["m.onnx"], "--force"),
        (["m.pth"], "--format"),
        (["none/m.onnx"], "--output"),
        (["m.safetensors", "--normalised-input"], "--normalised-input"),
        (["n.onnx", "--checkpoint", tmp_path / "none.pt"], "none.pt"),
        (["n.onnx", "--pictures", tmp_path / "empty"], "holds no pictures"),
        (["n.onnx", "--pictures", tmp_path / "text"], "can be read"),
        (["n.onnx", "--run", tmp_path / "empty"], "holds no run"),
    ):
        code, out, err = export(*arguments)
        assert (code, out) == (2, ""), arguments
        assert says in err, arguments
    with monkeypatch.context() as patch:
        patch.setattr(plumage.inference.export, "find_spec", lambda name: None if name == "onnxscript" else name)
        code, out, err = export("n.onnx")
    assert (code, out) == (2, "")
    assert err == 'error: --format onnx: needs onnxscript: pip install -e ".[export]"'
    monkeypatch.setattr(plumage.inference.export.torch.onnx, "export", lambda *_, **__: 1 // 0)
    code, out, err = export("n.onnx")
    assert (code, out) == (2, "")
    assert "cannot write or read it here: integer division or modulo by zero" in err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_where_the_pictures_are_gone_others_do(run, export, tmp_path):
    recipe = run / "recipe.json"
    before = recipe.read_text()
    try:
        recipe.write_text(json.dumps({**json.loads(before), "data": str(tmp_path / "gone")}))
        code, out, err = export("m.safetensors")
        assert (code, out) == (2, "")
        assert "gone" in err
        assert "--pictures FOLDER" in err
        draw_photos(tmp_path / "others", 2)
        code, out, _ = export("m.safetensors", "--pictures", tmp_path / "others")
        assert code == 0
        assert "6 of 6 pictures" in out
    finally:
        recipe.write_text(before)


def test_every_fit_is_told():
    field = next(field for field in fields(Recipe) if field.name == "fit")
    assert set(FITS) == set(field.metadata["choices"])
