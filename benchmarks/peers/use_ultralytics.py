"""Ultralytics' own command: https://docs.ultralytics.com/tasks/classify (its example: 100 epochs, from weights)

``yolo classify train model=yolov8-cls-resnet50.yaml data=FOLDER epochs=N imgsz=SIDE``, with its defaults: batches of
16, the optimizer and rate that ``optimizer=auto`` chooses, RandAugment, random erasing. It rounds the side up to a
multiple of 32, so that 56 becomes 64. ``plots=False``, since plots need a font that it would fetch. Its best epoch is
chosen on val/. From weights, the network is that of ultralytics_weights.py.
"""

import subprocess
import sys
from pathlib import Path

from task import Task, read_task


def network(task: Task) -> list[str]:
    if not task.weights:
        return ["model=yolov8-cls-resnet50.yaml"]
    script = Path(__file__).with_name("ultralytics_weights.py")
    subprocess.run([sys.executable, script, task.weights, task.folder], check=True, stdout=sys.stderr)
    return [f"model={task.folder / 'resnet50-relu-cls.yaml'}", f"pretrained={task.folder / 'weights.pt'}"]


def main() -> None:
    task = read_task()
    how = [*network(task), f"data={task.data}", f"epochs={task.epochs}", f"imgsz={task.side}", f"seed={task.seed}"]
    task.begins()
    yolo = Path(sys.executable).with_name("yolo")
    own = [f"project={task.folder}", "name=train", "plots=False"]
    subprocess.run([yolo, "classify", "train", *how, *own], check=True, stdout=sys.stderr)
    task.evaluated()
    from ultralytics import YOLO  # noqa: PLC0415 (whose memory would be measured beside the command's)

    print((task.folder / "train" / "results.csv").read_text(encoding="utf-8"))
    model = YOLO(task.folder / "train" / "weights" / "best.pt")
    pictures = sorted(str(picture) for picture in (task.data / "val").glob("*/*"))
    found = [result.names[result.probs.top1] for result in model(pictures, stream=True, verbose=False, save=False)]
    task.predicted(pictures, found)


if __name__ == "__main__":
    main()
