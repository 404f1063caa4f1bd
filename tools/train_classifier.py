"""Train the digit classifier in whose features the book measures distances, and write it down.

    .venv/bin/python tools/train_classifier.py

Ten seconds on one core. It sees `digits("train")` and nothing else. Into
ddpm_lite/weights/digit-classifier go the weights (classifier.safetensors) and, in the file's header
and beside it (classifier.json), the recipe, the seed and the accuracies. The same machine gives the
same bytes; another one may round differently, so the file in the repository is the standard:
distances in other features are other numbers.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_lite.data import digits
from ddpm_lite.metrics import Classifier
from ddpm_lite.storage import to_json, write_atomically, write_tensors

FOLDER = Path(__file__).resolve().parent.parent / "ddpm_lite" / "weights" / "digit-classifier"

RECIPE = {
    "data": 'digits("train"), 1442 images; none of the 355 held out',
    "seed": 0,
    "epochs": 40,
    "batch_size": 64,
    "optimiser": "AdamW, learning rate falling to zero along half a cosine",
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "jitter": 0.06,  # standard deviation of each number of a random affine map of the picture
}


def train(recipe: dict) -> Classifier:
    """The classifier that a recipe makes: weights, and the features' mean and scale."""
    g = torch.Generator().manual_seed(recipe["seed"])
    network = initialise(g)
    images, labels = digits("train")
    batch = recipe["batch_size"]
    steps = recipe["epochs"] * (len(images) // batch)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"]
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(recipe["epochs"]):
        order = torch.randperm(len(images), generator=g)
        for chosen in order.split(batch)[: len(images) // batch]:
            seen = jitter(images[chosen], recipe["jitter"], g)
            loss = nn.functional.cross_entropy(network(seen), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
    with torch.no_grad():
        features = network.embed(images)
        network.feature_mean.copy_(features.mean(0))
        network.feature_scale.copy_(features.std(0))
    return network.eval()


def initialise(g: torch.Generator) -> Classifier:
    """Weights uniform within ±1/√fan-in, no biases, all from the generator."""
    with torch.device("meta"):
        network = Classifier().float()
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                reach = 1 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-reach, reach, generator=g)
                layer.bias.zero_()
    return network


def jitter(images: Tensor, size: float, g: torch.Generator) -> Tensor:
    """Each picture a little moved, turned, stretched and slanted; what comes in is black."""
    maps = torch.eye(2, 3) + size * torch.randn(len(images), 2, 3, generator=g)
    grid = nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1


def accuracy(network: Classifier, split: str) -> float:
    """The share of a split's images whose class is predicted right."""
    images, labels = digits(split)
    return round((network.predict(images) == labels).double().mean().item(), 4)


def main() -> None:
    torch.set_num_threads(1)
    network = train(RECIPE)
    record = {
        "what": "classifier of 8x8 digits; its features are those of ddpm_lite.metrics",
        "made_by": "tools/train_classifier.py",
        "recipe": RECIPE,
        "accuracy": {split: accuracy(network, split) for split in ("train", "heldout")},
        "torch": torch.__version__,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_tensors(FOLDER / "classifier.safetensors", network.state_dict(), record)
    write_atomically(FOLDER / "classifier.json", to_json(record))
    print(json.dumps(record["accuracy"]))


if __name__ == "__main__":
    main()
