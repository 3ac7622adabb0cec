"""A worker that trains the same models with PyTorch's DistributedDataParallel over gloo."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from peers import work

LIMIT = timedelta(seconds=120)
# By another name: builds of PyTorch without CUDA refuse this hook by its own, and run it.
_HOOKS = {"bfloat16": lambda state, bucket: default_hooks.bf16_compress_hook(state, bucket)}


def train(task: work.Task) -> dict[str, Any]:
    """Milliseconds per step of each timed epoch, and the loss of the last.

    A tuned worker takes what PyTorch has for speed and leaves to the user to find.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=task.rank, world_size=task.workers, timeout=LIMIT)
    model = _BUILD[task.model]()
    load(model, work.weights(task.model))
    layout = torch.channels_last if task.tuned and task.model == "cnn" else torch.preserve_format
    model = model.to(memory_format=layout)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=task.tuned)
    if task.wire:
        parallel.register_comm_hook(None, _HOOKS[task.wire])
    optimizer = torch.optim.Adam(parallel.parameters(), 1e-3, fused=task.tuned or None)
    batches = [(x.to(memory_format=layout), y) for x, y in _batches(task)]
    spent, loss, step = [], 0.0, 0
    for _ in range(task.epochs + 1):
        begun = time.perf_counter()
        total = torch.zeros(())
        for x, y in batches:
            optimizer.zero_grad()
            logits = parallel(x)
            wrong = functional.cross_entropy(logits.flatten(0, -2), y.flatten())
            wrong.backward()
            step += 1
            # Keras's epsilon, which is added before the second moment is corrected.
            optimizer.param_groups[0]["eps"] = 1e-7 / math.sqrt(1 - 0.999**step)
            optimizer.step()
            total += wrong.detach()
        dist.all_reduce(total)
        loss = total.item() / (task.steps * task.workers)
        spent.append((time.perf_counter() - begun) / task.steps * 1e3)
    dist.destroy_process_group()
    return {
        "ms": spent[1:],
        "loss": loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__},
    }


def _batches(task: work.Task) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each global batch, the rows of this worker."""
    x, y = work.data(task)
    if task.model == "cnn":
        x = x.transpose(0, 3, 1, 2)
    for first in range(task.rank * task.batch, len(x), task.global_batch):
        rows = slice(first, first + task.batch)
        yield torch.tensor(x[rows].copy()), torch.tensor(y[rows], dtype=torch.int64)


def _mlp() -> nn.Module:
    made: list[nn.Module] = []
    for fan_in, fan_out in pairwise(work.MLP):
        made += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def _cnn() -> nn.Module:
    made: list[nn.Module] = []
    for i, (channels_in, channels) in enumerate(work.CONVOLUTIONS):
        made += [nn.Conv2d(channels_in, channels, 3, padding="same"), nn.ReLU()]
        made += [nn.MaxPool2d(2)] if i % 2 else []
    return nn.Sequential(*made, nn.Flatten(), nn.Linear(work.FLAT, work.CLASSES))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(work.WIDTH, 3 * work.WIDTH)
        self.out = nn.Linear(work.WIDTH, work.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = work.HEADS, work.WIDTH // work.HEADS
        q, k, v = self.qkv(x).unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _norm() -> nn.Module:
    return nn.LayerNorm(work.WIDTH, eps=1e-3)  # as Keras's


def _transformer() -> nn.Module:
    width = work.WIDTH
    made: list[nn.Module] = [nn.Embedding(work.VOCABULARY, width)]
    for _ in range(work.LAYERS):
        made.append(_Residual(_norm(), _Attention()))
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        made.append(_Residual(_norm(), up, nn.GELU(), down))
    return nn.Sequential(*made, _norm(), nn.Linear(width, work.VOCABULARY))


_BUILD = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}


@torch.no_grad()
def load(model: nn.Module, weights: list[work.Array]) -> None:
    """Sets the parameters from weights that come in Keras's order and shapes."""
    left = iter([torch.tensor(w) for w in weights])
    within = {m for a in model.modules() if isinstance(a, _Attention) for m in a.children()}
    for module in model.modules():
        if isinstance(module, _Attention):
            kernels, biases = zip(
                *((next(left).flatten(1), next(left)) for _ in range(3)), strict=True
            )
            module.qkv.weight.copy_(torch.cat(kernels, 1).T)
            module.qkv.bias.copy_(torch.cat([b.flatten() for b in biases]))
            module.out.weight.copy_(next(left).flatten(0, 1).T)
            module.out.bias.copy_(next(left))
        elif isinstance(module, nn.Linear) and module not in within:
            kernel = next(left)
            if module.in_features == work.FLAT:  # of an image with the channels last
                side, channels = work.IMAGE // 4, work.CONVOLUTIONS[-1][1]
                kernel = (
                    kernel.unflatten(0, (side, side, channels)).permute(2, 0, 1, 3).flatten(0, 2)
                )
            module.weight.copy_(kernel.T)
            module.bias.copy_(next(left))
        elif isinstance(module, nn.Conv2d):
            module.weight.copy_(next(left).permute(3, 2, 0, 1))
            module.bias.copy_(next(left))
        elif isinstance(module, nn.LayerNorm):
            module.weight.copy_(next(left))
            module.bias.copy_(next(left))
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(next(left))
    if next(left, None) is not None:
        raise ValueError("there are more weights than parameters to hold them")
