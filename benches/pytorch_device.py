"""Steps per second of training in PyTorch on a GPU: `python pytorch_device.py [--seconds S] [--only NAME] [--device cuda]`.

The same work as worker/science/examples/device_training.rs, with the model and the batches of pytorch_train.py: one run, eager
and by torch.compile with its CUDA graphs, in f32, TF32 and bf16 (autocast); and 8 and 32 runs as one stacked model
(torch.func), eager and compiled. Losses stay on the GPU. Runs one after the other have the rate of one run, divided by how
many they are. Needs torch with CUDA; `--device cpu` only tries the script out.
"""

import argparse
import contextlib
import time
from unittest import mock

import torch
from torch import func
from torch.nn import functional as F

from pytorch_train import CONFIGS, Transformer, draw

AT_ONCE = 100


def network(config, seed):
    torch.manual_seed(seed)
    return Transformer(config["data"], config["model"], config["std"])


def adam(parameters, config):
    return torch.optim.Adam(parameters, lr=config["lr"], betas=config["betas"], fused=True)


def alone(config, precise, compiled):
    """A step of one run."""
    model = network(config, 0)
    optimizer = adam(model.parameters(), config)
    forward = torch.compile(model, mode="max-autotune") if compiled else model

    def step():
        tokens, targets = draw(*config["data"], config["batch"])
        with precise():
            predicted = forward(tokens)
        loss = F.mse_loss(predicted.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def attention(q, k, v, is_causal):
    """What can be stacked: vmap would call the fused kernels for one run after the other."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 if is_causal else scores.shape[-1])
    return scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v


def stacked(config, precise, compiled, runs):
    """A step of several runs as one model whose parameters have a dimension more."""
    models = [network(config, seed) for seed in range(runs)]
    parameters, _ = func.stack_module_state(models)
    optimizer = adam(parameters.values(), config)

    def loss_of(own, tokens, targets):
        with precise():
            predicted = func.functional_call(models[0], own, (tokens,))
        return F.mse_loss(predicted.float(), targets)

    gradients = func.vmap(func.grad_and_value(loss_of))
    if compiled:
        gradients = torch.compile(gradients, mode="max-autotune")

    def step():
        drawn = [draw(*config["data"], config["batch"]) for _ in range(runs)]
        tokens, targets = (torch.stack(part) for part in zip(*drawn))
        own = {name: p.detach() for name, p in parameters.items()}
        with mock.patch.object(F, "scaled_dot_product_attention", attention):
            found, losses = gradients(own, tokens, targets)
        for name, p in parameters.items():
            p.grad = found[name]
        optimizer.step()
        return losses.mean()

    return step


def rate(step, seconds, synchronize):
    """After as many steps that compile and warm up."""

    def some():
        for _ in range(AT_ONCE):
            loss = step()
        synchronize()
        return loss

    some()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        loss = some()
        steps += AT_ONCE
    return steps / (time.perf_counter() - start), loss.item()


def main():
    global AT_ONCE
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--only", choices=CONFIGS)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--at-once", type=int, default=AT_ONCE)
    arguments.add_argument("--no-compile", action="store_true")
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__}: not measured, since it finds no GPU")
        return
    AT_ONCE = given.at_once
    torch.set_default_device(given.device)
    synchronize = torch.cuda.synchronize if given.device == "cuda" else lambda: None
    bf16 = lambda: torch.autocast(given.device, torch.bfloat16)
    for name, config in CONFIGS.items():
        if given.only not in (None, name):
            continue
        for runs in (1, 8, 32):
            for precision, precise in [("f32", contextlib.nullcontext), ("tf32", contextlib.nullcontext), ("bf16", bf16)]:
                torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
                for compiled in (False, True)[: 1 if given.no_compile else 2]:
                    torch.compiler.reset()
                    how = "torch.compile" if compiled else "eager"
                    what = f"{name:10} × {runs:2} {precision:4} {how if runs == 1 else how + ' of torch.func'}"
                    try:
                        make = alone(config, precise, compiled) if runs == 1 else stacked(config, precise, compiled, runs)
                        steps, loss = rate(make, given.seconds, synchronize)
                        found = f"PyTorch {steps:9.1f} steps/s of each run, loss {loss:.4f} ({torch.__version__})"
                        print(f"{what}: {found}", flush=True)
                    except Exception as error:  # noqa: BLE001  (out of memory, or what vmap cannot do: the others go on)
                        print(f"{what}: not measured: {type(error).__name__}: {str(error)[:200]}", flush=True)


if __name__ == "__main__":
    main()
