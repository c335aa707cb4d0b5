"""Trains the chat model from nothing: `python -m appliance.inference.making.chat.train --out DIR`.

A Llama-shaped network of 4.9 M parameters learns to continue conversations that `corpus` draws from the seed; only what a
persona says counts. Stopping at any time loses at most `--save-every` steps: the same command goes on from the last checkpoint,
and the result does not depend on how often it was stopped. Needs `requirements-training.txt`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from . import tokens
from .corpus import Corpus, render
from .plan import Plan, Shape, learning_rate


class Norm(nn.Module):
    """RMS norm with a learnt scale."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape.embedding))
        self.epsilon = shape.epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.scale.to(x.dtype), self.epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs, llama.cpp's ROPE_TYPE_NORM. x: (batch, heads, time, head)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[: x.shape[-2]].to(x.dtype), sin[: x.shape[-2]].to(x.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention and gated feed-forward, each behind a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.embedding

        def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
            layer = nn.Linear(inputs, outputs, bias=False)
            nn.init.normal_(layer.weight, std=scale * 0.6 / math.sqrt(inputs))
            return layer

        deep = 1 / math.sqrt(2 * shape.blocks)
        self.attention_norm, self.feed_norm = Norm(shape), Norm(shape)
        self.qkv = linear(width, (shape.heads + 2 * shape.kv_heads) * shape.head)
        self.out = linear(width, width, deep)
        self.gate_up = linear(width, 2 * shape.feed_forward)
        self.down = linear(shape.feed_forward, width, deep)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, sees: Tensor) -> Tensor:
        shape = self.shape
        batch, length, _ = x.shape
        sizes = [shape.heads * shape.head, shape.kv_heads * shape.head, shape.kv_heads * shape.head]
        q, k, v = self.qkv(self.attention_norm(x)).split(sizes, -1)
        q = rotate(q.view(batch, length, shape.heads, shape.head).transpose(1, 2), cos, sin)
        k = rotate(k.view(batch, length, shape.kv_heads, shape.head).transpose(1, 2), cos, sin)
        v = v.view(batch, length, shape.kv_heads, shape.head).transpose(1, 2)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, shape.embedding))
        gate, up = self.gate_up(self.feed_norm(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


class Network(nn.Module):
    """Token ids (batch, time) and who sees whom -> hidden states (batch, time, embedding); the head is the embedding itself."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        nn.init.normal_(self.embedding.weight, std=0.04)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = Norm(shape)
        half = torch.arange(0, shape.head, 2)
        angles = torch.outer(torch.arange(shape.context), shape.rope_base ** (-half / shape.head))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, sees: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, sees)
        return self.norm(x)


class Batch(NamedTuple):
    """What one step learns from."""

    #: Token ids, (rows, time + 1).
    ids: Tensor
    #: Whether the persona says it, so that it is learnt; (rows, time + 1).
    learnt: Tensor
    #: What is added to the attention, 0 where a token sees another and -inf elsewhere; (rows, 1, time, time).
    #: A token sees what stands before it in its own conversation, as it does later in the engine.
    sees: Tensor


class Rows:
    """Rows of packed conversations for a step: a function of seed and step alone."""

    def __init__(self, corpus: Corpus, tokenizer: Any, shape: Shape, plan: Plan) -> None:
        self.corpus, self.tokenizer, self.shape, self.plan = corpus, tokenizer, shape, plan

    def __call__(self, step: int) -> Batch:
        plan = self.plan
        rng = random.Random(f"{plan.seed}/{step}")
        length = self.shape.context if plan.is_long(step) else plan.row_tokens
        rows = plan.step_tokens // length
        echo = plan.echo_share if step >= plan.echo_from else 0.0
        ids = torch.zeros(rows, length + 1, dtype=torch.long)
        learnt = torch.zeros(rows, length + 1, dtype=torch.bool)
        conversation = torch.zeros(rows, length, dtype=torch.long)
        for row in range(rows):
            filled, number = 0, 0
            while filled <= length:
                pieces = render(self.corpus.conversation(rng, echo=echo))
                some, says = tokens.encode(self.tokenizer, pieces)
                some, says = some[: length + 1 - filled], says[: length + 1 - filled]
                ids[row, filled : filled + len(some)] = torch.tensor(some)
                learnt[row, filled : filled + len(some)] = torch.tensor(says)
                conversation[row, filled:] = number
                filled += len(some)
                number += 1
        own = conversation[:, :, None] == conversation[:, None, :]
        sees = (own & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
        return Batch(
            ids, learnt, torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, -math.inf)
        )


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint so that a power cut leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def train(out: Path, shape: Shape, plan: Plan, *, threads: int, save_every: int) -> None:
    """Trains to the end of the plan, or goes on from the checkpoint in `out`."""
    torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus()
    if not (out / "tokenizer.json").exists():
        print("learning the tokenizer", flush=True)
        tokens.learn(corpus, out / "tokenizer.json")
    rows = Rows(corpus, tokens.load(out / "tokenizer.json"), shape, plan)
    network = Network(shape)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    scales = [p for p in network.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": scales, "weight_decay": 0.0}],
        lr=plan.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    compiled = torch.compile(network, dynamic=False)
    first, spent = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["shape"] != asdict(shape) or state["plan"] != asdict(plan):
            raise SystemExit(f"{checkpoint}: made with another shape or plan; give another --out")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, from step {first}", flush=True)
    began = time.monotonic()
    for step in range(first, plan.steps):
        ids, learnt, sees = rows(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = compiled(ids[:, :-1], sees)[learnt[:, 1:]]
            logits = hidden @ network.embedding.weight.T
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][learnt[:, 1:]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0 or done == plan.steps:
            seconds = spent + time.monotonic() - began
            speed = (done - first) * plan.step_tokens / (time.monotonic() - began)
            left = (plan.steps - done) * plan.step_tokens / speed
            print(
                f"step {done}/{plan.steps}  loss {loss.item():.3f}  {speed:,.0f} tokens/s  "
                f"{seconds / 60:.0f} min done, {left / 60:.0f} min to go",
                flush=True,
            )
        if done % save_every == 0 or done == plan.steps:
            save(
                checkpoint,
                {
                    "shape": asdict(shape),
                    "plan": asdict(plan),
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "seconds": spent + time.monotonic() - began,
                },
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer and checkpoints")
    parser.add_argument(
        "--steps", type=int, default=Plan.steps, help="optimizer steps (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    arguments = parser.parse_args()
    train(
        arguments.out,
        Shape(),
        Plan(steps=arguments.steps),
        threads=arguments.threads,
        save_every=arguments.save_every,
    )


if __name__ == "__main__":
    main()
