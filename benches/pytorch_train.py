"""Steps per second of training in PyTorch, eager and compiled: `python pytorch_train.py --threads N [--seconds S] [--only NAME]`.

The same work as worker/science/examples/train_speed.rs: draw a batch of the mixture, forward, backward, Adam. Written to
be fast: fused attention, fused Adam, read-out at the x positions only. In f32, and in bf16 by autocast. Needs torch (`pip install torch`).
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

# dim, bases, rank, examples, weight mean; layers, width, heads, (block std, read-in std, position std); batch, Adam
CONFIGS = {
    "quickstart": dict(data=(4, 2, 2, 8, 2.0), model=(3, 64, 4), std=(0.125, 0.1, 0.06), batch=64,
                       lr=2e-3, betas=(0.9, 0.999)),
    "paper": dict(data=(16, 4, 4, 20, 0.0), model=(12, 256, 8), std=(0.02, 0.14, 0.02), batch=128,
                  lr=1e-4, betas=(0.9, 0.9999)),
}
NOISE_VARIANCE = 0.01


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(a.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, data, model, std):
        super().__init__()
        (dim, _, _, examples, _), (layers, width, heads), (block_std, read_in_std, position_std) = data, model, std
        self.read_in, self.read_out = nn.Linear(dim, width), nn.Linear(width, 1)
        self.wpe = nn.Parameter(torch.randn(2 * examples, width) * position_std)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(p)
            elif ".ln_" not in name and not name.startswith(("ln_f", "wpe")):
                scale = (2 * layers) ** -0.5 if "_proj" in name else 1.0
                nn.init.normal_(p, std=read_in_std if name.startswith("read_in") else block_std * scale)

    def forward(self, tokens):
        x = self.read_in(tokens) + self.wpe
        for block in self.blocks:
            x = block(x)
        return self.read_out(self.ln_f(x[:, ::2]))[..., 0]


def draw(dim, bases, rank, examples, weight_mean, batch):
    """Tokens (B, 2K, D) and targets (B, K) of a mixture with disjoint bases, y in coordinate 0."""
    basis = torch.randint(bases, (batch, 1))
    active = torch.arange(dim) // rank == basis
    weights = (torch.randn(batch, dim) + weight_mean) * active
    x = torch.randn(batch, examples, dim)
    y = (x @ weights[..., None])[..., 0] + torch.randn(batch, examples) * NOISE_VARIANCE**0.5
    tokens = torch.zeros(batch, examples, 2, dim)
    tokens[:, :, 0] = x
    tokens[:, :, 1, 0] = y
    return tokens.view(batch, 2 * examples, dim), y


def measure(config, seconds, compiled, bf16):
    torch.manual_seed(0)
    network = Transformer(config["data"], config["model"], config["std"])
    if compiled:
        network = torch.compile(network)
    adam = torch.optim.Adam(network.parameters(), lr=config["lr"], betas=config["betas"], fused=True)

    def run(seconds):
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            tokens, targets = draw(*config["data"], config["batch"])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.mse_loss(network(tokens), targets)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            loss.item()
            steps += 1
        return steps / (time.perf_counter() - start)

    run(seconds / 10)  # compiles, too
    return run(seconds)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--only", choices=CONFIGS)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    for name, config in CONFIGS.items():
        if given.only in (None, name):
            for bf16 in (False, True):
                for how, compiled in [("eager", False), ("torch.compile", True)]:
                    rate = measure(config, given.seconds, compiled, bf16)
                    how = f"{'bf16 by autocast' if bf16 else 'f32'}, {how}, {torch.__version__}"
                    print(f"{name:10} {given.threads} threads  PyTorch {rate:8.2f} steps/s ({how})", flush=True)
