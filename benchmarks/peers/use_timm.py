"""timm's model in the recipe of its training script: https://huggingface.co/docs/timm/training_script and train.py

All values are that script's defaults: SGD with Nesterov momentum, rate 0.1 × batch / 256, batches of 128, decay 2e-5,
cosine over epochs after a warm-up of 5 (of 300 epochs; of fewer than 20, a quarter), label smoothing 0.1, random
resized crops, flips and colour jitter, float32, a worker for each core (there 4). Fewer pictures than a batch are one.
The script is in timm's repository, not in its package: who clones it writes one command instead of this.
"""

import os

import torch
from task import read_task  # benchmark
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy, random_seed


def evaluate(model, loader):
    model.eval()
    top1, predicted = AverageMeter(), []
    with torch.no_grad():
        for images, labels in loader:
            output = model(images)
            top1.update(accuracy(output, labels)[0].item(), len(labels))
            predicted += output.argmax(1).tolist()  # benchmark
    return top1.avg, predicted


def main():
    task = read_task()  # benchmark
    random_seed(task.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = create_dataset("", root=task.data, split="train")
    val = create_dataset("", root=task.data, split="val")
    classes = train.reader.class_to_idx
    weights = {"file": str(task.weights), "num_classes": -1}  # its last layer is never taken
    model = create_model(
        "resnet50",
        num_classes=len(classes),
        pretrained=task.weights is not None,
        pretrained_cfg_overlay=weights if task.weights else None,
    ).to(device)
    config = resolve_data_config({"input_size": (3, task.side, task.side)}, model=model)
    size, batch = config["input_size"], min(128, len(train))
    shared = {"mean": config["mean"], "std": config["std"], "num_workers": min(4, os.cpu_count()), "device": device}
    learn = create_loader(train, size, batch, is_training=True, interpolation="random", **shared)
    check = create_loader(
        val, size, batch, interpolation=config["interpolation"], crop_pct=config["crop_pct"], **shared
    )
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1 * batch / 256, weight_decay=2e-5, momentum=0.9)
    scheduler, epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=task.epochs, warmup_epochs=min(5, task.epochs // 4), warmup_lr=1e-5
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(epochs):
        model.train()
        for images, labels in learn:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
        top1, predicted = evaluate(model, check)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, top-1 {top1:.2f}", flush=True)
    task.evaluated()  # benchmark
    names = list(classes)  # benchmark
    task.predicted(val.filenames(absolute=True), [names[i] for i in predicted])  # benchmark


if __name__ == "__main__":
    main()
