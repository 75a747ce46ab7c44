"""fastai's vision_learner, by its tutorial: https://docs.fast.ai/tutorial.vision.html

Pictures are first resized to twice the side, then augmented and resized on the batch (there: 460 and 224). From weights
``fine_tune`` (an epoch of the head alone, then ``fit_one_cycle`` over all), from scratch ``fit_one_cycle`` alone
(https://docs.fast.ai/callback.schedule.html), with the default rates, batches of 64, Adam and head; fewer pictures than
a batch are one. Normalised as the weights want it, which vision_learner adds by itself with weights of its own.
"""

import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    create_body,
    get_image_files,
    imagenet_stats,
    resnet50,
    set_seed,
    vision_learner,
)
from task import read_task  # benchmark


def main():
    task = read_task()  # benchmark
    set_seed(task.seed)
    views = [*aug_transforms(size=task.side), Normalize.from_stats(*imagenet_stats)]
    batch = min(64, len(get_image_files(task.data / "train")))
    dls = ImageDataLoaders.from_folder(
        task.data, train="train", valid="val", bs=batch, item_tfms=Resize(2 * task.side), batch_tfms=views
    )
    learn = vision_learner(dls, resnet50, pretrained=False, metrics=accuracy)
    if task.weights:  # benchmark
        network = resnet50()  # benchmark
        network.load_state_dict(torch.load(task.weights), strict=False)  # benchmark
        learn.model[0].load_state_dict(create_body(network, cut=-2).state_dict())  # benchmark
    fit = learn.fine_tune if task.weights else learn.fit_one_cycle
    fit(task.epochs)
    task.evaluated()  # benchmark
    probabilities, _ = learn.get_preds(dl=dls.valid)  # benchmark
    task.predicted(dls.valid_ds.items, [dls.vocab[i] for i in probabilities.argmax(1).tolist()])  # benchmark


if __name__ == "__main__":
    main()
