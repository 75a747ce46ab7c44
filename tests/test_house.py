"""The rooms of the house, and what each may import: imports run one way."""

import ast
import subprocess
import sys

from conftest import ROOT

# A room may import itself and these rooms, or single modules of them: all stand above it, so there are no circles.
ROOMS = {
    "errors": "",
    "names": "",
    "files": "names errors",
    "tables": "files errors",
    "recipe": "files errors",
    "hardware": "errors",
    "birds": "hardware.cores files errors",
    "data": "birds recipe.is_birds hardware.cores tables files names errors",
    "models": "names errors",
    "rundir": "recipe tables files names errors",
    "engine": "data models rundir hardware recipe files names errors",
    "inference": "engine.prepare engine.evaluator engine.learnt data models rundir hardware recipe tables files "
    "names errors",
    "report": "inference.calibration inference.heat inference.rejection engine.schedule rundir recipe tables files "
    "errors",
    "review": "report inference engine rundir models data birds hardware recipe tables files errors",
    "ablation": "review report inference engine rundir models data birds hardware recipe tables files errors",
    "options": "data.cache recipe files errors",
    "console": "errors",
    "plumage": "inference rundir hardware files errors",
    "main": "console options ablation review report inference engine rundir models data birds hardware recipe files "
    "errors",
}
TYPES = {"options": "data hardware"}  # under TYPE_CHECKING alone
WITHOUT_TORCH = ("rundir", "report")
TORCH = ("torch", "torchvision", "safetensors", "ignite")


def modules(room):
    """Return the files of a room, which is a module or a folder."""
    return sorted([*ROOT.glob(f"{room}.py"), *(ROOT / room).rglob("*.py")])


def imports(path):
    """Yield line, full name and whether only types need it, of each import, of those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_types = {node for check in checks for node in ast.walk(check)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{'.' * node.level}{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from ((node.lineno, start + alias.name, node in only_types) for alias in node.names)


def may_import(room, name, only_types):
    package, _, inside = name.partition(".")
    if package == "plumage":
        entries = [room, *ROOMS[room].split(), *(TYPES.get(room, "").split() if only_types else ())]
        return any(f"{inside}.".startswith(f"{entry}.") for entry in entries)
    if package == "ignite" and room != "engine" and not f"{inside}.".startswith("distributed."):
        return False
    relative = not package
    return not relative and not (room in WITHOUT_TORCH and package in TORCH)


def test_the_table_names_every_room_below_those_that_it_imports():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {path.stem for path in ROOT.glob("*.py")} - {"setup"} | folders == ROOMS.keys()
    order = list(ROOMS)
    for room, entries in ROOMS.items():
        assert {entry.split(".")[0] for entry in entries.split()} <= set(order[: order.index(room)]), room


def test_each_room_imports_only_what_it_may():
    refused = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for room in ROOMS
        for path in modules(room)
        for line, name, only_types in imports(path)
        if not may_import(room, name, only_types)
    ]
    assert not refused, "\n".join(refused)


def test_rundir_and_report_load_no_torch():
    paths = [path.relative_to(ROOT).with_suffix("") for room in WITHOUT_TORCH for path in modules(room)]
    names = ", ".join(".".join(["plumage", *path.parts]) for path in paths)
    code = f"import sys; sys.modules['torch'] = None; import {names}"  # so an import of torch fails, with a traceback
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
