"""A process that trains the same two models in PyTorch, compiled, as its guides advise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from one_gpu.task import RATE, Task


class Block(nn.Module):
    """A bottleneck of ResNet-50, with its stride where Keras has it: in the first convolution."""

    def __init__(self, given: int, inner: int, stride: int, project: bool) -> None:
        super().__init__()
        self.a, self.a_norm = _convolution(given, inner, 1, stride), _norm(inner)
        self.b, self.b_norm = _convolution(inner, inner, 3), _norm(inner)
        self.c, self.c_norm = _convolution(inner, 4 * inner, 1), _norm(4 * inner)
        self.skip = nn.Identity()
        if project:
            self.skip = nn.Sequential(_convolution(given, 4 * inner, 1, stride), _norm(4 * inner))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.a_norm(self.a(x)))
        y = functional.relu(self.b_norm(self.b(y)))
        return functional.relu(self.c_norm(self.c(y)) + self.skip(x))


class ResNet50(nn.Module):
    """Of bytes, rows last as Keras has them."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.stem, self.stem_norm = _convolution(3, 64, 7, 2), _norm(64)
        stages: list[nn.Module] = []
        given, inner = 64, 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride = 2 if stage and block == 0 else 1
                stages.append(Block(given, inner, stride, block == 0))
                given = 4 * inner
            inner *= 2
        self.stages = nn.Sequential(*stages)
        self.top = nn.Linear(given, task.sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        x = functional.relu(self.stem_norm(self.stem(x)))
        x = self.stages(functional.max_pool2d(x, 3, 2, 1))
        return self.top(x.mean((2, 3)))


def _convolution(given: int, made: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(given, made, size, stride, padding=size // 2)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)


class DecoderLayer(nn.Module):
    """Attention and a feed-forward layer, both normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.near, self.far = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.into(self.near(x)).split(width, dim=2)
        shape = (rows, length, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, width))
        y = functional.gelu(self.wide(self.far(x)), approximate="tanh")
        return x + self.narrow(y)


class Decoder(nn.Module):
    """Of the size of GPT-2 small."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        s = task.sizes
        self.tokens = nn.Embedding(s.vocabulary, s.width)
        self.places = nn.Embedding(s.sequence, s.width)
        self.layers = nn.Sequential(*(DecoderLayer(s.width, s.heads) for _ in range(s.layers)))
        self.norm = nn.LayerNorm(s.width)
        self.top = nn.Linear(s.width, s.vocabulary, bias=False)
        for embedding in (self.tokens, self.places):
            nn.init.uniform_(embedding.weight, -0.05, 0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(places)
        return self.top(self.norm(self.layers(x)))


def train(task: Task, say: Callable[[dict[str, Any]], None], wait: Callable[[], None]) -> None:
    """As `one_gpu.with_keras.train`."""
    device = "cuda" if task.device == "gpu" else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    model = (ResNet50 if task.model == "resnet50" else Decoder)(task).to(device)
    if task.model == "resnet50":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE[task.model], weight_decay=0.004, eps=1e-7, fused=True
    )
    x, y = _batch(task, device)
    say(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "card": torch.cuda.get_device_name() if device == "cuda" else "CPU",
            "versions": {"torch": torch.__version__},
        }
    )
    compiled = torch.compile(model) if task.xla == "jit" else model

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = compiled(x)
        loss = functional.cross_entropy(logits.float().flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    wait()
    begun = time.perf_counter()
    losses = [float(step()) for _ in range(task.warm)]
    say({"warm_s": time.perf_counter() - begun, "first_loss": sum(losses) / len(losses)})
    for _ in range(task.rounds):
        begun = time.perf_counter()
        total = torch.zeros((), device=device)
        for _ in range(task.steps):
            total += step()
        loss = float(total) / task.steps  # waits for the last step
        spent = time.perf_counter() - begun
        say({"step_time_ms": spent / task.steps * 1e3, "loss": loss})
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    say({"peak_gib": peak})


def _batch(task: Task, device: str) -> tuple[Tensor, Tensor]:
    """The batch lies on the device."""
    s = task.sizes
    if task.model == "resnet50":
        images = torch.randint(0, 256, (s.batch, s.image, s.image, 3), dtype=torch.uint8)
        return images.to(device), torch.randint(0, s.classes, (s.batch,)).to(device)
    tokens = torch.randint(0, s.vocabulary, (s.batch, s.sequence + 1)).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
