"""torchvision's reference recipe: https://github.com/pytorch/vision/tree/main/references/classification

The defaults of its train.py: SGD of rate 0.1 for the 8 × 32 pictures of eight GPUs, which its README has one scale, so
0.0125 for the 32 of one; momentum 0.9, decay 1e-4, to a tenth after each third (30 of 90 epochs), random resized crops
and flips, float32, a worker for each core (there 16). It is the same from weights: there is no other recipe for that.
The script is in torchvision's repository, not in its package: who clones it writes one command instead of this.
"""

import os

import torch
from task import read_task  # benchmark
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


def evaluate(model, loader, device):
    model.eval()
    right, predicted = 0, []
    with torch.inference_mode():
        for images, labels in loader:
            found = model(images.to(device)).argmax(1).cpu()
            right += (found == labels).sum().item()
            predicted += found.tolist()  # benchmark
    return right / len(loader.dataset), predicted


def main():
    task = read_task()  # benchmark
    torch.manual_seed(task.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    last = [
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    view = transforms.Compose([transforms.RandomResizedCrop(task.side), transforms.RandomHorizontalFlip(), *last])
    centre = transforms.Compose([transforms.Resize(task.resize), transforms.CenterCrop(task.side), *last])
    train, val = datasets.ImageFolder(task.data / "train", view), datasets.ImageFolder(task.data / "val", centre)
    shared = {"batch_size": 32, "num_workers": min(16, os.cpu_count()), "pin_memory": device.type == "cuda"}
    learn, check = DataLoader(train, shuffle=True, **shared), DataLoader(val, **shared)
    model = models.resnet50(num_classes=len(train.classes))
    if task.weights:  # benchmark
        model.load_state_dict(torch.load(task.weights), strict=False)  # benchmark
    model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * 32 / 256, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, task.epochs // 3), gamma=0.1)
    for epoch in range(task.epochs):
        model.train()
        for images, labels in learn:
            loss = criterion(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        accuracy, predicted = evaluate(model, check, device)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {accuracy:.4f}", flush=True)
    task.evaluated()  # benchmark
    task.predicted([path for path, _ in val.samples], [val.classes[i] for i in predicted])  # benchmark


if __name__ == "__main__":
    main()
