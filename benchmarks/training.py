"""What a training step costs beyond the network's own forward and backward pass.

Four contestants train copies of one network on the same kind of batch, on one thread:

    bare        forward, mean square, backward: what nobody can save
    step        ours without a trainer: draws, loss, backward, clipping, fused Adam, EMA
    trainer     ours under Lightning's fit loop, with its data stream, EMA, loss guard, CSV log
    torchcfm    the recipe of torchcfm's CIFAR-10 example: its own flow matcher if it is installed,
                Adam, clipping, a schedule, and an EMA over the state dict, entry by entry

They take turns, one step each, in an order that rotates: the trainer runs its loop, and a callback
lets the others have a step between two of its own. Time is CPU time of the process, so that other
users of the machine disturb little. The figure is the median over rounds of the ratio to the bare
step of the same round.

    python benchmarks/training.py [--quick]
"""

import argparse
import copy
import logging
from statistics import median, quantiles
import tempfile
import time
import warnings

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from measure import write_results
import torch
from torch import nn

from genflow.data import DataModule, Tensors
from genflow.nn import UNet
from genflow.training import EMA, LossGuard, RectifiedFlow

try:
    from torchcfm import ConditionalFlowMatcher
except ImportError:
    ConditionalFlowMatcher = None

CASES = {
    "colour 32×32, batch 16": (
        {"size": 32, "channels": 3, "widths": (32, 64, 96), "layers": 2, "attention": ()},
        16,
        48,
    ),
    "digits 8×8, batch 128": (
        {"size": 8, "channels": 1, "widths": (64, 128), "layers": 1, "attention": (4,)},
        128,
        48,
    ),
}


class Random(DataModule):
    """Bytes without meaning, in the shape of real images."""

    def __init__(self, shape, **options):
        super().__init__(**options)
        self._shape = shape

    def load(self):
        """See `DataModule.load`."""

        g = torch.Generator().manual_seed(0)
        return Tensors(torch.randint(0, 256, (2048, *self._shape), dtype=torch.uint8, generator=g))


def bare(net, batch):
    x, time_ = torch.rand(batch) * 2 - 1, torch.rand(batch[0]) * 1000
    parameters = list(net.parameters())

    def step():
        net(x, time_).square().mean().backward()
        for p in parameters:
            p.grad = None

    return step


def ours(net, batch):
    module = RectifiedFlow(net, lr=2e-4)
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    ema = EMA(0.9999)
    ema._attach(module)
    data = {"x": torch.rand(batch) * 2 - 1}
    count = iter(range(10**9))

    def step():
        module.loss(data, step=next(count)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step


def torchcfm(net, batch):
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(s, 5000) / 5000)
    matcher = ConditionalFlowMatcher(sigma=0.0) if ConditionalFlowMatcher else None
    x1 = torch.rand(batch) * 2 - 1

    def follow(source, target, decay):
        a, b = source.state_dict(), target.state_dict()
        for key in a:
            b[key].data.copy_(b[key].data * decay + a[key].data * (1 - decay))

    def step():
        optimizer.zero_grad()
        x0 = torch.randn_like(x1)
        if matcher is not None:
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        else:
            t = torch.rand(len(x1))
            s = t.reshape(-1, 1, 1, 1)
            xt, ut = s * x1 + (1 - s) * x0, x1 - x0
        torch.mean((net(xt, t) - ut) ** 2).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        follow(net, average, 0.9999)

    return step


class Referee(Callback):
    """Listed last: times the trainer's step, and gives the others theirs."""

    def __init__(self, others):
        self.others = others
        self.times = {name: [] for name in (*others, "trainer")}
        self.begun = None

    def on_train_batch_end(self, trainer, *args):
        """Ends the trainer's step, runs the others, begins the trainer's next."""

        if self.begun is not None:
            self.times["trainer"].append(time.process_time() - self.begun)
            turn = trainer.global_step % len(self.others)
            names = list(self.others)
            for name in names[turn:] + names[:turn]:
                start = time.process_time()
                self.others[name]()
                self.times[name].append(time.process_time() - start)
        self.begun = time.process_time()


def rate(options, size, rounds, warm=3):
    torch.manual_seed(0)
    net = UNet(**options)
    shape = (options["channels"], options["size"], options["size"])
    batch = (size, *shape)
    makers = {"bare": bare, "step": ours, "torchcfm": torchcfm}
    referee = Referee({k: make(copy.deepcopy(net).train(), batch) for k, make in makers.items()})

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_steps=rounds + warm + 1,
            accelerator="cpu",
            logger=CSVLogger(folder),
            callbacks=[EMA(0.9999), LossGuard(), referee],
            gradient_clip_val=1.0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=50,
        ).fit(RectifiedFlow(net, lr=2e-4), Random(shape, batch_size=size))

    times = {k: v[warm:] for k, v in referee.times.items()}
    result = {"parameters": sum(p.numel() for p in net.parameters()), "rounds": rounds}
    for name, seen in times.items():
        ratios = [a / b for a, b in zip(seen, times["bare"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        result[name] = {
            "milliseconds": round(1e3 * median(seen), 2),
            "ratio": round(median(ratios), 4),
            "quartiles": [round(low, 4), round(high, 4)],
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    options = parser.parse_args()
    quick = options.quick

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = {}

    for name, (sizes, size, rounds) in CASES.items():
        results[name] = found = rate(sizes, size, rounds // 4 if quick else rounds)
        milliseconds = {k: v["milliseconds"] for k, v in found.items() if isinstance(v, dict)}
        print(f"{name}, milliseconds a step: {milliseconds}", flush=True)

    write_results("training", {"threads": 1, "cases": results}, options)


if __name__ == "__main__":
    main()
