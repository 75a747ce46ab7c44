"""The script people write: https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html

As the tutorial has it: batches of 4, a worker for each core (there 4), SGD of rate 0.001 and momentum 0.9, to a tenth
after each 7 epochs, random resized crops and flips, float32, and at the end the weights of the epoch that was best on
val/. There it is 25 epochs from ImageNet's weights; from scratch it is the same.
"""

import copy
import os

import torch
from task import read_task  # benchmark
from torch import nn, optim
from torch.optim import lr_scheduler
from torchvision import datasets, models, transforms


def main():
    task = read_task()  # benchmark
    torch.manual_seed(task.seed)
    data_transforms = {
        "train": transforms.Compose(
            [
                transforms.RandomResizedCrop(task.side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        ),
        "val": transforms.Compose(
            [
                transforms.Resize(task.resize),
                transforms.CenterCrop(task.side),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        ),
    }
    image_datasets = {x: datasets.ImageFolder(task.data / x, data_transforms[x]) for x in ("train", "val")}
    workers = min(4, os.cpu_count())
    dataloaders = {
        x: torch.utils.data.DataLoader(image_datasets[x], batch_size=4, shuffle=x == "train", num_workers=workers)
        for x in ("train", "val")
    }
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    model = models.resnet50()
    if task.weights:  # benchmark
        model.load_state_dict(torch.load(task.weights), strict=False)  # benchmark
    model.fc = nn.Linear(model.fc.in_features, len(image_datasets["train"].classes))
    model = model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, best_weights = 0.0, copy.deepcopy(model.state_dict())
    for epoch in range(task.epochs):
        for phase in ("train", "val"):
            model.train(phase == "train")
            running_loss, running_corrects = 0.0, 0
            for inputs, labels in dataloaders[phase]:
                inputs, labels = inputs.to(device), labels.to(device)  # noqa: PLW2901
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    preds = outputs.argmax(1)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                running_loss += loss.item() * inputs.size(0)
                running_corrects += torch.sum(preds == labels).item()
            if phase == "train":
                scheduler.step()
            count = len(image_datasets[phase])
            print(f"epoch {epoch + 1} {phase}: loss {running_loss / count:.4f} acc {running_corrects / count:.4f}")
            if phase == "val" and running_corrects / count > best:
                best, best_weights = running_corrects / count, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    task.evaluated()  # benchmark
    val, predicted = image_datasets["val"], []  # benchmark
    with torch.no_grad():  # benchmark
        for inputs, _ in dataloaders["val"]:  # benchmark
            predicted += model(inputs.to(device)).argmax(1).tolist()  # benchmark
    task.predicted([path for path, _ in val.samples], [val.classes[i] for i in predicted])  # benchmark


if __name__ == "__main__":
    main()
