#!/usr/bin/env python3
"""Trains the small video diffusion transformer that examples/wan ships.

The network is the Wan 2.1 text-to-video transformer (same tensor names, same arithmetic), only narrow: pixels in,
pixels out.  The data are clips drawn on the fly: textured objects that keep their identity while they move, a mirrored
copy of each elsewhere in the picture, one passing behind another, a camera that pans or zooms over a textured ground.
Each clip has a caption of nine words in three parts,

    red striped disc; blue dotted square; grey waves pan-left

    pip install numpy torch safetensors
    python3 train.py --minutes 180 --out model.safetensors                    # two CPU cores, 2-4 hours
    python3 train.py --minutes 10 --device cuda --bf16 --compile --tokens 131072 --out model.safetensors   # one large GPU

It may be stopped at any time: --state holds everything, and the same command goes on from there.
`train.py --reference model.safetensors FILE` writes the test data of tests/test_wan.c instead of training.
"""
import argparse, hashlib, json, math, os, sys, time
import torch, torch.nn as nn, torch.nn.functional as F

# ------------------------------------------------------------------------------------------------ captions and clips
COLOURS = {"red": (.95, .20, .18), "green": (.20, .80, .25), "blue": (.25, .40, 1.0),
           "yellow": (1.0, .85, .15), "magenta": (.90, .25, .85), "cyan": (.15, .85, .90)}
PATTERNS = ["solid", "striped", "checked", "dotted"]
SHAPES = ["disc", "square", "triangle", "ring"]
GROUND_COLOURS = {"black": (.04, .04, .05), "grey": (.45, .45, .48), "brown": (.42, .28, .16), "navy": (.10, .14, .38)}
GROUNDS = ["plain", "gradient", "tiles", "waves"]
CAMERAS = ["still", "pan-left", "pan-right", "pan-up", "pan-down", "zoom-in", "zoom-out"]
WORDS = list(COLOURS) + PATTERNS + SHAPES + list(GROUND_COLOURS) + GROUNDS + CAMERAS     # 29 words
PARTS = 3                                                       # first object; second object; ground and camera
TEXT_DIM = len(WORDS) + PARTS                                   # a word is one-hot, and so is the part it stands in
TEXT_LEN = 9


def caption_of(choice):
    """[B, 9] word numbers -> the text embedding [B, 9, TEXT_DIM] that takes the place of umT5's."""
    part = torch.arange(TEXT_LEN, device=choice.device) // 3
    return torch.cat((F.one_hot(choice, len(WORDS)), F.one_hot(part, PARTS).expand(len(choice), -1, -1)), -1).float()


def clips(batch, frames, size, generator, device="cpu"):
    """Draws `batch` clips [B, 3, frames, size, size] in [-1, 1] and their captions."""
    def rand(*shape, lo=0.0, hi=1.0):
        return lo + (hi - lo) * torch.rand(*shape, generator=generator, device=device)

    def pick(n):
        return torch.randint(0, n, (batch,), generator=generator, device=device)

    first = [0]
    for group in (COLOURS, PATTERNS, SHAPES, GROUND_COLOURS, GROUNDS, CAMERAS):
        first.append(first[-1] + len(group))
    look = [[pick(6), pick(4), pick(4)] for _ in range(2)]                       # colour, pattern, shape of A and B
    ground_colour, ground, camera = pick(4), pick(4), pick(7)
    words = [part[i] + first[i] for part in look for i in range(3)]
    words += [ground_colour + first[3], ground + first[4], camera + first[5]]

    each, at = torch.arange(batch, device=device), lambda v: v.view(batch, 1, 1, 1)
    t = torch.arange(frames, device=device).float().view(1, frames, 1, 1)
    line = torch.arange(size, device=device).float() - (size - 1) / 2
    # the camera: world position of each pixel
    speed = at(rand(batch, lo=.8, hi=1.8))
    pan_x = (at(camera == 2).float() - at(camera == 1).float()) * speed * t
    pan_y = (at(camera == 4).float() - at(camera == 3).float()) * speed * t
    zoom = torch.exp((at(camera == 6).float() - at(camera == 5).float()) * .03 * t)
    x = line.view(1, 1, 1, size) * zoom + pan_x
    y = line.view(1, 1, size, 1) * zoom + pan_y
    x, y = x.expand(batch, frames, size, size), y.expand(batch, frames, size, size)

    # the ground
    phase_x, phase_y, period = at(rand(batch, hi=30)), at(rand(batch, hi=30)), at(rand(batch, lo=9, hi=14))
    gx, gy = (x + phase_x) * (2 * math.pi / period), (y + phase_y) * (2 * math.pi / period)
    shade = torch.stack((torch.full_like(x, .5), (.5 + (x * at(rand(batch, lo=-1, hi=1)) + y) / 80).clamp(0, 1),
                         .5 + .5 * torch.tanh(4 * torch.sin(gx) * torch.sin(gy)),
                         .5 + .5 * torch.sin(gx + 1.5 * torch.sin(gy / 2)) * torch.cos(gy / 3)), 1)
    shade = shade[each, ground].unsqueeze(1)
    base = torch.tensor(list(GROUND_COLOURS.values()), device=device)[ground_colour].view(batch, 3, 1, 1, 1)
    video = base + (shade - .5) * .36

    # the objects, far to near, in front of the camera's ground; a larger picture holds a mirrored copy of each
    radius = 7.0
    half = size / 2 - radius - 1
    copies = 1 if size <= 32 else 2
    sx, sy = line.view(1, 1, 1, size).expand(batch, frames, size, size), line.view(1, 1, size, 1).expand(batch, frames, size, size)
    place = [[at(rand(batch, lo=-half, hi=half)) + at(rand(batch, lo=-1.4, hi=1.4)) * t for _ in range(2)] for _ in range(2)]
    for o, c in [(o, c) for c in range(copies) for o in range(2)]:
        colour, pattern, shape = look[o]
        fold = lambda p: half - (torch.remainder(p + half, 4 * half) - 2 * half).abs()      # bounces off the walls
        cx, cy = (fold(p) * (1 - 2 * c) for p in place[o])
        u, v, r = sx - cx, sy - cy, radius
        d = (u * u + v * v).sqrt()
        edge = torch.stack((r - d, .88 * r - torch.maximum(u.abs(), v.abs()),
                            torch.minimum(.62 * r - v, (v + 1.15 * r - 1.75 * u.abs()) * .5), .32 * r - (d - .75 * r).abs()), 1)
        mask = (edge[each, shape] + .5).clamp(0, 1).unsqueeze(1)
        wave = 2 * math.pi / 6.5
        fill = torch.stack((torch.ones_like(u), torch.sin(u * wave), torch.sin(u * wave) * torch.sin(v * wave) * 1.6,
                            torch.cos(u * wave) + torch.cos(v * wave) - .55), 1)[each, pattern]
        fill = .5 + .5 * torch.tanh(3 * fill).unsqueeze(1)
        tint = torch.tensor(list(COLOURS.values()), device=device)[colour].view(batch, 3, 1, 1, 1)
        video = video * (1 - mask) + mask * tint * (.22 + .78 * fill)
    return video.clamp(0, 1) * 2 - 1, torch.stack(words, 1)


def to_latent(video, fold):
    """[B, 3, F, H, W] -> [B, 3 fold^2, F, H / fold, W / fold]: stands where Wan has its VAE, and loses nothing."""
    b, c, f, h, w = video.shape
    z = video.view(b, c, f, h // fold, fold, w // fold, fold)
    return z.permute(0, 1, 4, 6, 2, 3, 5).reshape(b, c * fold * fold, f, h // fold, w // fold)


# ------------------------------------------------------------------------------------------------ the Wan transformer
class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rope_table(frames, height, width, head_dim, device):
    """cos and sin [tokens, head_dim / 2] of Wan's three-axis rotary embedding."""
    axis = 2 * (head_dim // 6)
    angles = []
    for length, dim, view in ((frames, head_dim - 2 * axis, (-1, 1, 1)), (height, axis, (1, -1, 1)), (width, axis, (1, 1, -1))):
        frequency = 1.0 / torch.pow(10000.0, torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
        angles.append(angle.view(*view, dim // 2).expand(frames, height, width, dim // 2))
    angle = torch.cat(angles, -1).reshape(frames * height * width, head_dim // 2)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x, rope):
    """x [B, H, N, D]: turns the pairs (2i, 2i + 1)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope[0].to(x.dtype), rope[1].to(x.dtype)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x, context=None, rope=None):
        split = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        context = x if context is None else context
        q, k, v = split(self.norm_q(self.q(x))), split(self.norm_k(self.k(context))), split(self.v(context))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        o = F.scaled_dot_product_attention(q, k, v.to(q.dtype))
        return self.o(o.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, ffn_dim, heads):
        super().__init__()
        self.dim = dim
        self.self_attn, self.cross_attn = Attention(dim, heads), Attention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim ** 0.5)

    def forward(self, x, e, context, rope):
        e = (self.modulation + e).unsqueeze(2).unbind(1)
        norm = lambda z: F.layer_norm(z, (self.dim,), eps=1e-6)
        x = x + self.self_attn(norm(x) * (1 + e[1]) + e[0], rope=rope) * e[2]
        x = x + self.cross_attn(self.norm3(x), context)
        return x + self.ffn(norm(x) * (1 + e[4]) + e[3]) * e[5]


class Head(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.dim, self.head = dim, nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim ** 0.5)

    def forward(self, x, e):
        e = (self.modulation + e.unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.head(F.layer_norm(x, (self.dim,), eps=1e-6) * (1 + e[1]) + e[0])


class Wan(nn.Module):
    PATCH = (1, 2, 2)

    def __init__(self, channels, dim, ffn_dim, heads, layers, text_dim=TEXT_DIM, freq_dim=256):
        super().__init__()
        self.dim, self.freq_dim, self.channels, self.heads = dim, freq_dim, channels, heads
        self.patch_embedding = nn.Conv3d(channels, dim, self.PATCH, self.PATCH)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim, heads) for _ in range(layers))
        self.head = Head(dim, math.prod(self.PATCH) * channels)
        nn.init.zeros_(self.head.head.weight)
        nn.init.zeros_(self.head.head.bias)
        for i in (0, 2):
            nn.init.normal_(self.text_embedding[i].weight, std=.3 if i == 0 else dim ** -.5)

    def forward(self, latent, timestep, text, trace=None):
        """latent [B, C, F, H, W], timestep [B] in 0..1000, text [B, L, text_dim] -> velocity, noise minus data."""
        x = self.patch_embedding(latent)
        frames, height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        half = self.freq_dim // 2
        angle = torch.outer(timestep.double(), torch.pow(10000.0, -torch.arange(half, device=x.device).double() / half))
        e = self.time_embedding(torch.cat((angle.cos(), angle.sin()), 1).float())
        projected = self.time_projection(e).unflatten(1, (6, self.dim))
        context = self.text_embedding(text)
        rope = rope_table(frames, height, width, self.dim // self.heads, x.device)
        if trace is not None:
            trace["embedded"] = x
        for i, block in enumerate(self.blocks):
            x = block(x, projected, context, rope)
            if trace is not None:
                trace[f"block.{i}"] = x
        x = self.head(x, e).view(len(x), frames, height, width, *self.PATCH, self.channels)
        return torch.einsum("nfhwpqrc->ncfphqwr", x).reshape(latent.shape)


# ------------------------------------------------------------------------------------------------ training
def parameters_by_rule(model):
    """The matrices of the blocks go to Muon, all else to AdamW."""
    muon = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in muon}
    return muon, [p for p in model.parameters() if id(p) not in chosen]


def save_safetensors(path, tensors, metadata):
    from safetensors.torch import save_file
    save_file({k: v.contiguous() for k, v in tensors.items()}, path + ".part", metadata=metadata)
    os.replace(path + ".part", path)


def export(path, weights, args, note):
    metadata = {"architecture": "wan2.1-t2v", "num_heads": str(args.heads), "pixel_fold": str(args.fold),
                "text_len": str(TEXT_LEN), "words": " ".join(WORDS), "parts": str(PARTS), "training": note}
    save_safetensors(path, {k: v.to(torch.bfloat16) for k, v in weights.items()}, metadata)
    with open(path, "rb") as f:
        print("wrote", path, os.path.getsize(path), "bytes, sha256", hashlib.sha256(f.read()).hexdigest(), flush=True)


# (share of the draws, frames, size) of each part of training: short first, the size of generation at the end.
# A few frames of many scenes teach shapes faster than many frames of a few.
SHAPES_UNTIL = ((.50, ((.30, 8, 32), (.30, 2, 64), (.40, 4, 64))),
                (.70, ((.10, 2, 64), (.30, 4, 64), (.60, 8, 64))),
                (1.0, ((.10, 4, 64), (.20, 8, 64), (.70, 16, 64))))


def shape_for(progress, tokens, generator):
    """(batch, frames, size) of a step."""
    draw = torch.rand(1, generator=generator, device=generator.device).item()
    choices = next((c for until, c in SHAPES_UNTIL if progress < until), SHAPES_UNTIL[-1][1])
    for share, frames, size in choices:
        draw -= share
        if draw < 0:
            break
    return max(1, tokens // (frames * (size // 4) ** 2)), frames, size


def train(args):
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed + 1)
    model = Wan(3 * args.fold ** 2, args.dim, args.ffn_dim, args.heads, args.layers).to(device)
    if args.start and not os.path.exists(args.state):
        from safetensors.torch import load_file
        model.load_state_dict({k: v.float() for k, v in load_file(args.start).items()})
    muon, rest = parameters_by_rule(model)
    optimizers = [torch.optim.Muon(muon, lr=args.lr, weight_decay=.02, momentum=.95, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(rest, lr=args.lr, weight_decay=.0, betas=(.9, .98))]
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, spent, losses = 0, 0.0, {}
    if os.path.exists(args.state):
        state = torch.load(args.state, map_location=device, weights_only=False)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)
        average, step, spent, losses = state["average"], state["step"], state["spent"], state["losses"]
        generator.set_state(state["generator"].cpu())
        print(f"going on at step {step}, {spent / 60:.1f} minutes", flush=True)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    if args.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    budget, began, saved, offset = args.minutes * 60, time.time(), time.time(), spent
    note = "python3 train.py " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in sorted(vars(args).items())
                                         if k in ("minutes", "dim", "ffn_dim", "heads", "layers", "fold", "lr", "tokens", "seed"))

    def save():
        torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "average": average,
                    "step": step, "spent": spent, "losses": losses, "generator": generator.get_state()}, args.state + ".part")
        os.replace(args.state + ".part", args.state)
        export(args.out, average, args, f"{note} ({step} steps)")

    while spent < budget:
        progress = spent / budget
        rate = min(1, (step + 1) / 60) * min(1, max(.02, (1 - progress) / .5))
        for o in optimizers:
            for g in o.param_groups:
                g["lr"] = args.lr * rate
        batch, frames, size = shape_for(progress, args.tokens, generator)
        video, words = clips(batch, frames, size, generator, device)
        clean, text = to_latent(video, args.fold), caption_of(words)
        text = text * (torch.rand(batch, 1, 1, generator=generator, device=device) > .12)     # guidance needs both
        sigma = torch.sigmoid(torch.randn(batch, generator=generator, device=device) * 1.1)
        shift = args.shift * (clean[0, 0].numel() / 2048) ** (1 / 3)        # a longer clip shows through more noise
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        mix = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
            velocity = model((1 - mix) * clean + mix * noise, sigma * 1000, text)
        loss = F.mse_loss(velocity.float(), noise - clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        with torch.no_grad():
            keep = min(args.average, (1 + step) / (10 + step))
            torch._foreach_lerp_([v for v in average.values()], [v for v in model.state_dict().values()], 1 - keep)
        key = f"{frames}x{size}"
        losses[key] = .98 * losses.get(key, loss.item()) + .02 * loss.item()
        spent = offset + time.time() - began
        if step % 50 == 0:
            print(f"step {step}  {spent / 60:.1f} min  loss", {k: round(v, 4) for k, v in losses.items()}, flush=True)
        if time.time() - saved > args.save_minutes * 60:
            save()
            saved = time.time()
    save()


@torch.no_grad()
def reference(args):
    """Test data: input, the tensor after each block and the output, computed here in f32 from the shipped weights."""
    from safetensors import safe_open
    with safe_open(args.reference[0], "pt") as f:
        meta, weights = f.metadata(), {k: f.get_tensor(k).float() for k in f.keys()}
    dim = weights["patch_embedding.weight"].shape[0]
    model = Wan(weights["patch_embedding.weight"].shape[1], dim, weights["blocks.0.ffn.0.weight"].shape[0], int(meta["num_heads"]),
                len({k.split(".")[1] for k in weights if k.startswith("blocks.")}), weights["text_embedding.0.weight"].shape[1])
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(1, model.channels, 3, 8, 12, generator=generator)
    _, words = clips(1, 3, 32, generator)
    trace = {"latent": latent, "timestep": torch.tensor([637.25]), "text": caption_of(words)}
    trace["velocity"] = model(latent, trace["timestep"], trace["text"], trace)
    save_safetensors(args.reference[1], {k: v.squeeze(0) for k, v in trace.items() if k != "timestep"} | {"timestep": trace["timestep"]},
                     {"made_by": "examples/wan/train.py --reference"})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="model.safetensors", help="weights, bf16, averaged over training")
    p.add_argument("--state", default="train.state", help="checkpoint to go on from")
    p.add_argument("--start", metavar="MODEL", help="begin with the weights of a trained model, with nothing else of it")
    p.add_argument("--reference", nargs=2, metavar=("MODEL", "FILE"), help="write test data for the model and stop")
    p.add_argument("--minutes", type=float, default=180, help="training time in all, earlier runs included")
    p.add_argument("--save-minutes", type=float, default=5)
    p.add_argument("--device", default="cpu")
    p.add_argument("--bf16", action="store_true", help="bf16 products (GPUs, CPUs with AMX or AVX512-BF16)")
    p.add_argument("--compile", action="store_true", help="torch.compile: an eighth faster on a CPU, needs a C++ compiler")
    p.add_argument("--dim", type=int, default=192)
    p.add_argument("--ffn-dim", type=int, default=768)
    p.add_argument("--heads", type=int, default=3)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--fold", type=int, default=2, help="pixels per side folded into channels")
    p.add_argument("--tokens", type=int, default=8192, help="video tokens per step")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--shift", type=float, default=2.0, help="timestep shift of training, at 512 tokens")
    p.add_argument("--average", type=float, default=.998, help="decay of the averaged weights")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    reference(args) if args.reference else train(args)


if __name__ == "__main__":
    main()
