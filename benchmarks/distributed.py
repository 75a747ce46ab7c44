"""What it costs that several processes train together, and what it should cost on many GPUs.

    OMP_NUM_THREADS=1 python benchmarks/distributed.py -o benchmarks/results/distributed-cpu.md
    python benchmarks/distributed.py --model
    OMP_NUM_THREADS=1 python benchmarks/distributed.py --hosts

The first trains ResNet-50 on made-up pictures in two processes of one thread each, over gloo, and prints when each
bucket of gradients was handed over and when it was reduced, against the backward pass; the pictures a second of one
process and of two, in turns; and what it takes to agree. --model prints the efficiency that the formula in `predict`
gives, which is computed and not measured, beside what others have published. --hosts, for root on Linux, makes two
hosts of network namespaces, trains on both with torchrun, kills a process on one, and compares with two processes on
one host.
"""

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from table import provenance, publish
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plumage.engine.train
from plumage.data.loader import Batch, shard_of
from plumage.hardware import processes
from plumage.hardware.device import Machine
from plumage.hardware.environment import environment
from plumage.recipe import Recipe

MAIN = Path(__file__).resolve().parents[1] / "main.py"

# --- on paper ----------------------------------------------------------------------------------------------------

PARAMETERS = 25.6e6  # of ResNet-50
BUCKETS, LAST = 5, 9.7e6  # how many DistributedDataParallel makes, and the bytes of the one that comes last
WINDOW = 0.5  # of a step: from where the first large bucket is there, a quarter into the backward pass, to its end
PER_HOST, NVLINK, LATENCY = 8, 200e9, 20e-6  # GPUs; bytes a second; seconds for each hop of an all-reduce
JITTER = 0.02  # the standard deviation of a step's time, as a share of it
PER_SECOND = 2470  # pictures, of one A100 in mixed precision: NVIDIA's own figure, see PUBLISHED
LINKS = {"10 Gbit/s": 1.25e9, "25 Gbit/s": 3.125e9, "100 Gbit/s": 12.5e9, "8 × 200 Gbit/s": 200e9}
PUBLISHED = """
Published by others, on other hardware and by other means, and not measured here:

| Who | What | GPUs | Efficiency |
| --- | --- | --- | --- |
| [Goyal et al. 2017](https://arxiv.org/abs/1706.02677) | ResNet-50, 32 pictures a P100, Caffe2 | from 8 to 256 | about 90 % |
| [Horovod's documentation](https://github.com/horovod/horovod/blob/master/docs/benchmarks.rst) | ResNet-101, P100 by fours, 25 Gbit/s | 512 | 90 % |
| [NVIDIA DeepLearningExamples](https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/ConvNets/resnet50v1.5) | ResNet-50, DGX A100, TF32: 938 and 7,248 img/s | 8 | 97 % |
| the same | mixed precision: 2,470 and 16,621 img/s | 8 | 84 % |
| the same | DGX-1 with V100, FP32: 367 and 2,855 img/s | 8 | 97 % |
| the same | mixed precision: 1,200 and 8,322 img/s | 8 | 87 % |
"""  # noqa: E501


def predict(gpus: int, pictures: int, link: float) -> float:
    """The pictures a second of ``gpus``, each with ``pictures`` a step, as a share of ``gpus`` times those of one.

    A step takes t, its backward pass 2/3 of that. The slowest of N steps, if they scatter normally by σ·t, takes about
    t·(1 + σ·√(2·ln N)). A ring sends 2·(N − 1)/N of the gradients' 4·P bytes through each GPU's link, or across hosts
    each host's, and each bucket takes 2·log2 N hops. That overlaps with WINDOW·t of the backward pass, except for the
    last bucket's; what does not is added to the step.
    """
    if gpus == 1:
        return 1.0
    step, size = pictures / PER_SECOND, 4 * PARAMETERS
    bandwidth = NVLINK if gpus <= PER_HOST else min(NVLINK, link)
    hops = 2 * math.log2(gpus) * LATENCY
    reduce = 2 * (gpus - 1) / gpus * size / bandwidth + BUCKETS * hops
    last = 2 * (gpus - 1) / gpus * LAST / bandwidth + hops
    slowest = step * (1 + JITTER * math.sqrt(2 * math.log(gpus)))
    return step / (slowest + max(last, reduce - WINDOW * step))


def model_table() -> str:
    lines = [
        f"{PARAMETERS / 1e6} M parameters, gradients of 4 bytes; {PER_SECOND} pictures a second and GPU; {PER_HOST} "
        f"GPUs a host, {NVLINK / 1e9:.0f} GB/s between them; {LATENCY * 1e6:.0f} µs a hop; steps that scatter by "
        f"{JITTER:.0%}; the links are a host's to the others.",
        "",
        "| Pictures per GPU | Link | " + " | ".join(f"{2**power} GPUs" for power in range(9)) + " |",
        "| --- " * 11 + "|",
    ]
    for pictures in (256, 32):
        for name, link in LINKS.items():
            shares = [f"{predict(2**power, pictures, link):.0%}" for power in range(9)]
            lines.append(f"| {pictures} | {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines) + PUBLISHED


# --- measured ----------------------------------------------------------------------------------------------------


class Clock:
    """When, in each step, the forward pass ended, each bucket was handed over and reduced, and the update began."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def watch(self, network: torch.nn.Module) -> torch.nn.Module:
        network.register_forward_hook(lambda *_: self.steps.append({"forward": time.perf_counter(), "buckets": []}))
        network.register_comm_hook(None, self.reduce)  # type: ignore[operator]
        return network

    def reduce(self, state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        entry = {"size": bucket.buffer().nbytes, "given": time.perf_counter()}
        self.steps[-1]["buckets"].append(entry)
        gradient = bucket.buffer().div_(torch.distributed.get_world_size())
        future = torch.distributed.all_reduce(gradient, async_op=True).get_future()

        def reduced(future: Any) -> torch.Tensor:
            entry["reduced"] = time.perf_counter()
            return future.value()[0]

        return future.then(reduced)


def work(rank: int, world_size: int, port: int, options: argparse.Namespace, file: str) -> None:
    """Train ``options.steps`` steps; write what the first process saw to ``file``."""
    about = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in about.items()})
    torch.set_num_threads(1)
    cpu, clock, agreeing, begun = torch.device("cpu"), Clock(), 0.0, []
    sizes = {"batch_size": options.batch, "resize": options.crop, "crop": options.crop}
    recipe = Recipe.create({"preset": "finetune", "weights": "none", **sizes})
    with ExitStack() as stack:
        stack.enter_context(processes.joined(cpu))
        wrap = processes.wrap_ddp
        if world_size > 1:
            stack.enter_context(patch("plumage.hardware.processes.wrap_ddp", lambda *args: clock.watch(wrap(*args))))
        machine = Machine(cpu, "fp32", compile=False)
        classes = [str(number) for number in range(200)]
        state, _ = plumage.engine.train.build(recipe, machine, classes, options.steps * options.batch, None, None)
        shard = shard_of(options.batch, rank, world_size)
        images = torch.randint(256, (len(shard.places), options.crop, options.crop, 3), dtype=torch.uint8)
        batch = Batch(0, images, torch.arange(len(images)), shard)
        state.optimizer.register_step_pre_hook(lambda *_: begun.append(time.perf_counter()))
        state.trainer.run([batch] * options.steps, max_epochs=1)
        seconds = (begun[-1] - begun[1]) / (len(begun) - 2)  # without the first two, which build what the others use
        if world_size > 1:
            start = time.perf_counter()
            for _ in range(500):
                processes.any_process(0)
            agreeing = (time.perf_counter() - start) / 500
    if rank == 0:
        steps = [{**step, "update": update} for step, update in zip(clock.steps, begun, strict=False)][2:]
        Path(file).write_text(json.dumps({"seconds": seconds, "agreeing": agreeing, "steps": steps}))


def measure(world_size: int, options: argparse.Namespace) -> dict[str, Any]:
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port, file = free.getsockname()[1], Path(folder, "seen.json")
        free.close()
        multiprocessing.spawn(work, (world_size, port, options, str(file)), world_size)
        return json.loads(file.read_text())


def measured_tables(options: argparse.Namespace) -> str:
    rounds = [(measure(1, options), measure(2, options)) for _ in range(options.rounds)]
    alone, together = ([options.batch / seen[index]["seconds"] for seen in rounds] for index in (0, 1))
    gains = [two / one for one, two in zip(alone, together, strict=True)]
    agreeing = median(two["agreeing"] for _, two in rounds)
    steps = [step for _, two in rounds for step in two["steps"]]
    torch.set_num_threads(1)  # as in each process
    lines = [
        "# Two processes against one, on two CPU cores, over gloo",
        "",
        *provenance(environment(Machine(torch.device("cpu"), "fp32", compile=False))),
        f"- ResNet-50 at {options.crop} px, {options.batch} pictures a step for all processes together, fp32; "
        f"{options.rounds} rounds of {options.steps} steps, the first two of each left out",
        "",
        "| | median | from | to |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in (("one process, img/s", alone), ("two processes, img/s", together), ("ratio", gains)):
        lines.append(f"| {name} | {median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    lines += [
        "",
        f"To agree on one number takes {agreeing * 1e6:.0f} µs; a look at the metrics and signals is six of them.",
        "",
        "Buckets of gradients, in the order in which they are handed over (medians; 0 % is the end of the forward "
        "pass, 100 % the instant at which the last gradient is there):",
        "",
        "| Bucket | MB | handed over at | reduced at |",
        "| --- | --- | --- | --- |",
    ]

    def instant(step: dict[str, Any], index: int, name: str) -> float:
        last = step["buckets"][-1]["given"]
        return (step["buckets"][index][name] - step["forward"]) / (last - step["forward"])

    for index, bucket in enumerate(steps[0]["buckets"]):
        at = [median(instant(step, index, name) for step in steps) for name in ("given", "reduced")]
        lines.append(f"| {index + 1} | {bucket['size'] / 1e6:.1f} | {at[0]:.0%} | {at[1]:.0%} |")
    hidden = [
        sum(bucket["size"] for bucket in step["buckets"] if bucket["reduced"] <= step["buckets"][-1]["given"])
        / sum(bucket["size"] for bucket in step["buckets"])
        for step in steps
    ]
    waited = [step["update"] - step["buckets"][-1]["given"] for step in steps]
    backward = [step["buckets"][-1]["given"] - step["forward"] for step in steps]
    lines += [
        "",
        f"Reduced while other gradients were still being computed: {median(hidden):.0%} of the bytes. From the last "
        f"gradient to the update: {median(waited) * 1e3:.0f} ms, after {median(backward) * 1e3:.0f} ms of backward "
        "pass.",
    ]
    return "\n".join(lines)


# --- two hosts on one machine ------------------------------------------------------------------------------------

TRAINING = ["--data", "birds:species=4,pictures=20", "--preset", "finetune", "--model", "resnet18", "--weights", "none"]
TRAINING += ["--resize", "36", "--crop", "32", "--batch-size", "9", "--lr", "0.05", "--epochs", "6", "--device", "cpu"]
TRAINING += ["--precision", "fp32", "--no-report"]


@contextmanager
def two_hosts() -> Any:
    """Network namespaces that see each other as 10.77.0.1 and 10.77.0.2."""
    names = ["plumage-1", "plumage-2"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        ip(
            "link",
            "add",
            "plumage-a",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "plumage-b",
            "netns",
            names[1],
        )
        for number, (name, device) in enumerate(zip(names, ("plumage-a", "plumage-b"), strict=True), 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", device)
            for link in (device, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield list(zip(names, ("plumage-a", "plumage-b"), strict=True))


def torchrun(folder: Path, *options: str, before: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "torch.distributed.run", *options, "--", str(MAIN), "train", *TRAINING]
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", **variables}
    log = (folder / f"{variables.get('GLOO_SOCKET_IFNAME', 'one')}.log").open("w")
    return subprocess.Popen([*command, "--run", "run"], cwd=folder, env=surroundings, text=True, stdout=log, stderr=log)


def worker_of(launcher: int) -> int | None:
    """The process that ``launcher`` has started to train."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            about, process = status.read_text(), int(status.parent.name)
            trains = b"RANK=" in (status.parent / "environ").read_bytes()
            if f"\nPPid:\t{launcher}\n" in about and trains:
                return process
    return None


def train_on_hosts(folder: Path, kill: bool) -> tuple[list[int], float]:
    """The launchers' exit codes and the seconds that they took. kill: a process of the second host, after an epoch."""
    folder.mkdir()
    start = time.perf_counter()
    with two_hosts() as hosts:
        meeting = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d")
        launchers = [
            torchrun(
                folder, *meeting, "--rdzv-endpoint=10.77.0.1:29400", f"--local-addr=10.77.0.{number}",
                f"--rdzv-conf=is_host={int(number == 1)}",  # which both would deny by their name, which is one
                before=("ip", "netns", "exec", name), GLOO_SOCKET_IFNAME=device,
            )
            for number, (name, device) in enumerate(hosts, 1)
        ]  # fmt: skip
        while kill and launchers[0].poll() is None:
            history = folder / "run" / "history.jsonl"
            if history.exists() and history.read_text().count("\n") > 1 and (found := worker_of(launchers[1].pid)):
                os.kill(found, signal.SIGKILL)
                break
            time.sleep(0.05)
        codes = [launcher.wait() for launcher in launchers]
    return codes, time.perf_counter() - start


def hosts_table() -> str:
    if os.geteuid() or subprocess.run(["ip", "netns", "add", "plumage-0"], check=False, capture_output=True).returncode:
        return "no network namespaces here: skipped\n"
    subprocess.run(["ip", "netns", "del", "plumage-0"], check=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "one").mkdir()
        code = torchrun(home / "one", "--standalone", "--nproc-per-node=2").wait()
        lines = ["| Two processes | Exit codes | Seconds | Weights |", "| --- | --- | --- | --- |"]
        lines.append(f"| on one host | {code} | | |")
        for title, kill in (("on two hosts", False), ("on two hosts, one process killed", True)):
            folder = home / ("killed" if kill else "two")
            codes, seconds = train_on_hosts(folder, kill)
            same = "the same, bit by bit" if same_weights(home / "one", folder) else "others"
            lines.append(f"| {title} | {codes[0]}, {codes[1]} | {seconds:.0f} | {same} |")
            if "others" in lines[-1]:
                lines += [f"```\n{log.read_text()[-3000:]}\n```" for log in folder.glob("*.log")]
    return "\n".join(lines)


def same_weights(one: Path, other: Path) -> bool:
    try:
        first, second = (torch.load(run / "run" / "checkpoints" / "last.pt")["model"] for run in (one, other))
    except OSError:
        return False
    return all(np.array_equal(first[key], second[key]) for key in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="store_true", help="compute, and measure nothing")
    parser.add_argument("--hosts", action="store_true", help="two network namespaces instead")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    table = model_table() if options.model else hosts_table() if options.hosts else measured_tables(options)
    publish(table, options.output)


if __name__ == "__main__":
    main()
