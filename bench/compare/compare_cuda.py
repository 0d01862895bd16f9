"""Times svg2_cuda.cu beside PyTorch on one GPU: same tensors, same process, in turns (A B C A B C ...), CUDA events, medians.

    python bench/compare/compare_cuda.py --library build/gpu/libsvg2.so [--json FILE] [--seconds N] [--quick]

Peers: scaled_dot_product_attention (cuDNN and flash backends), FlexAttention over a map of 128 x 128 blocks, k-means by bmm.
Whatever is absent or fails is skipped with a line that says why; the JSON file is written anew after every part. bench/gpu.sh
builds the library and starts this.
"""
import argparse
import ctypes
import json
import statistics
import sys
import time

import torch

TAIL_NONE, TAIL_ORDER1 = 1, 3
BLOCK = 128
SHAPES = [  # heads, tokens (whole blocks of 128), dim, query clusters, key clusters; the last two if time is left
    (24, 32768, 64, 100, 500),
    (24, 118784, 128, 400, 1000),
    (24, 111616, 128, 100, 500),
    (40, 75648, 128, 300, 1000),
]


class Svg2:
    """The shared library; raises on every error sentence that it returns."""

    def __init__(self, path, stream):
        self.lib = ctypes.CDLL(path)
        for name in ("shim_check", "shim_open", "shim_start", "shim_attend", "shim_blocks", "shim_kmeans"):
            getattr(self.lib, name).restype = ctypes.c_char_p
        self.lib.shim_density.restype = ctypes.c_double
        self.lib.shim_stats_bytes.restype = ctypes.c_size_t
        self.stream = ctypes.c_void_p(stream)

    @staticmethod
    def check(text):
        if text:
            raise RuntimeError("svg2: " + text.decode())


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def at(tensor):
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else 0)


class Call:
    """One layer: svg2_attend with its state and workspace."""

    def __init__(self, svg2, q, clusters, density, tail):
        _, heads, tokens, dim = q.shape
        self.svg2, self.heads, self.handle = svg2, heads, ctypes.c_void_p()
        state, work = ctypes.c_size_t(), ctypes.c_size_t()
        svg2.check(svg2.lib.shim_open(ctypes.byref(self.handle), heads, tokens, dim, *clusters, ctypes.c_double(density), tail,
                                      ctypes.byref(state), ctypes.byref(work)))
        self.state, self.work = (memory(n.value, q.device) for n in (state, work))
        self.stats = torch.zeros(heads * svg2.lib.shim_stats_bytes(), dtype=torch.uint8, device=q.device)
        svg2.check(svg2.lib.shim_start(self.handle, at(self.state), state))
        self.bytes = work

    def run(self, step, q, k, v, out):
        lib = self.svg2.lib
        self.svg2.check(lib.shim_attend(self.handle, self.svg2.stream, step, at(q), at(k), at(v), at(out), at(self.stats),
                                        at(self.work), self.bytes))

    def density(self):
        host = self.stats.cpu()
        return self.svg2.lib.shim_density(ctypes.c_void_p(host.data_ptr()), self.heads)

    def close(self):
        self.svg2.lib.shim_close(self.handle)
        self.state = self.work = None


def memory(count, device):
    raw = torch.empty(count + 256, dtype=torch.uint8, device=device)
    skip = -raw.data_ptr() % 256
    return raw[skip:skip + count]


class Clock:
    def __init__(self, device):
        self.sweep = torch.empty(256 << 20, dtype=torch.uint8, device=device)

    def ms(self, fn):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.sweep.random_()  # the L2 is filled with something else
        torch.cuda._sleep(4_000_000)  # about 2 ms: what fn launches is queued behind it
        begin.record()
        fn()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


class Report:
    def __init__(self, path, facts):
        self.path, self.data, self.failures = path, dict(facts, rows=[]), 0

    def turns(self, clock, shape, cases, rounds, deadline):
        """cases: (name, flops, fn). One round first that does not count; what fails then is left out."""
        alive, times = [], {}
        for name, flops, fn in cases:
            try:
                clock.ms(fn)
                alive.append((name, flops, fn))
                times[name] = []
            except Exception as error:  # a peer that cannot run this shape is no failure of ours
                ours = "svg2" in name
                self.failures += ours
                print(f"  {name}: {'failed' if ours else 'skipped'}: {first_line(error)}")
        for n in range(rounds):
            if n >= 3 and time.monotonic() > deadline:
                break
            for name, _, fn in alive:
                times[name].append(clock.ms(fn))
        for name, flops, _ in alive:
            ms = statistics.median(times[name])
            self.data["rows"].append(dict(shape=shape, name=name, ms=ms, flops=flops, samples=times[name]))
            rate = f"{1e-9 * flops / ms:8.1f} TFLOP/s" if flops else ""
            print(f"  {name:<52} {ms:10.3f} ms {rate}", flush=True)
        self.write()
        return {name: statistics.median(t) for name, t in times.items() if t}

    def write(self):
        if self.path:
            with open(self.path, "w", encoding="utf-8") as file:
                json.dump(self.data, file, indent=1)


def rel_l2(x, y):
    x, y = x.double(), y.double()
    return float((x - y).norm() / y.norm())


def video(heads, tokens, dim, device, drift, seed=1):
    """Tokens of 200 things: queries and keys of one point the same way; all keys share a mean."""
    g = torch.Generator(device="cpu").manual_seed(seed)
    rand = lambda *size: torch.randn(*size, generator=g)
    thing = (torch.arange(tokens) * 200 // tokens + torch.randint(0, 12, (tokens,), generator=g)) % 200
    content, value, mean = rand(heads, 200, dim), rand(heads, 200, dim), 2 * rand(heads, 1, dim)
    out = []
    for which in range(3):
        x = (value if which == 2 else content).to(device)[:, thing.to(device)]
        x = x + (0.4 + drift) * torch.randn(x.shape, device=device, dtype=torch.float32)
        if which == 1:
            x = x + mean.to(device)
        out.append(x.to(torch.bfloat16).unsqueeze(0).contiguous())
    return out


def sdpa(backend, q, k, v):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    with sdpa_kernel([getattr(SDPBackend, backend)]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def flex_case(q, k, v, block_map):
    """FlexAttention over whole blocks: block_map [heads, rows, columns] of bool. Blocks that are full are computed without
    mask_mod; it is there so that the same mask means the same without torch.compile."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    count = block_map.sum(-1, dtype=torch.int32).unsqueeze(0)
    index = torch.argsort(block_map.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32).unsqueeze(0)
    mask = BlockMask.from_kv_blocks(torch.zeros_like(count), index, count, index, BLOCK_SIZE=BLOCK,
                                    mask_mod=lambda b, h, row, column: block_map[h, row // BLOCK, column // BLOCK],
                                    seq_lengths=(q.shape[2], k.shape[2]))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask)


def bmm_kmeans(x, start, iterations, heads_at_once=4):
    """x [H, S, D] bf16 without its mean; start [H, C, D] f32."""
    labels, clusters, dim = [], start.shape[1], start.shape[2]
    for h in range(0, x.shape[0], heads_at_once):
        part, c = x[h:h + heads_at_once], start[h:h + heads_at_once]
        for _ in range(iterations):
            score = torch.baddbmm(-0.5 * (c * c).sum(-1).to(x.dtype).unsqueeze(1), part, c.to(x.dtype).transpose(1, 2))
            label = score.argmax(-1)
            index = label.unsqueeze(-1).expand(-1, -1, dim)
            total = torch.zeros_like(c).scatter_add_(1, index, part.float())
            size = torch.zeros(c.shape[:2], device=c.device).scatter_add_(1, label, torch.ones_like(label, dtype=torch.float32))
            c = torch.where(size.unsqueeze(-1) > 0, total / size.clamp(min=1).unsqueeze(-1), c)
        labels.append(label)
    return torch.cat(labels)


class Problem:
    """One shape. Parts are independent: what fails in one leaves the others."""

    def __init__(self, svg2, report, clock, shape, device, rounds, begin, seconds):
        self.svg2, self.report, self.clock, self.device, self.rounds = svg2, report, clock, device, rounds
        self.heads, self.tokens, self.dim, self.query_clusters, self.key_clusters = shape
        self.title = f"{self.tokens} x {self.heads} x {self.dim}, {self.query_clusters}/{self.key_clusters}"
        self.begin, self.seconds = begin, seconds
        self.qkv = video(self.heads, self.tokens, self.dim, device, 0.0)
        self.out = torch.empty_like(self.qkv[0])
        self.peer = None  # ms of the fastest dense attention of PyTorch

    def turns(self, cases, share):
        deadline = min(time.monotonic() + share * self.seconds, self.begin + self.seconds)
        return self.report.turns(self.clock, self.title, cases, self.rounds, deadline)

    def note(self, name, value, **more):
        self.report.data["rows"].append(dict(shape=self.title, name=name, value=value, **more))

    def dense(self):
        q, k, v = self.qkv
        call = Call(self.svg2, q, (0, 0), 0.0, 0)
        flops = 4.0 * self.heads * self.tokens * self.tokens * self.dim
        cases = [("dense: svg2", flops, lambda: call.run(0, q, k, v, self.out))]
        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
            cases.append((f"dense: torch SDPA {backend.lower()}", flops, lambda backend=backend: sdpa(backend, q, k, v)))
        times = self.turns(cases, 0.15)
        self.peer = min((t for n, t in times.items() if "torch" in n), default=None)
        call.run(0, q, k, v, self.out)
        error = rel_l2(self.out[:, :1], torch.nn.functional.scaled_dot_product_attention(q[:, :1], k[:, :1], v[:, :1]))
        print(f"  dense: relative L2 between svg2 and torch {error:.1e}")
        self.note("dense: svg2 against torch, relative L2", error)
        call.close()
        if not error < 2e-2:
            raise RuntimeError(f"dense attention disagrees with torch: relative L2 {error:.2e}")

    def whole_calls(self):
        """Warm: the clusters are those of slightly other tensors."""
        q, k, v = video(self.heads, self.tokens, self.dim, self.device, 0.05)
        calls = []
        for density, tail, name in ((0.10, TAIL_ORDER1, "order 1"), (0.25, TAIL_ORDER1, "order 1"), (0.25, TAIL_NONE, "no tail")):
            call = Call(self.svg2, q, (self.query_clusters, self.key_clusters), density, tail)
            call.run(0, *self.qkv, self.out)
            calls.append((f"svg2_attend {density:.0%}, {name}", call))
        steps = iter(range(1, 1 << 30))
        times = self.turns([(n, 0, lambda c=c: c.run(next(steps), q, k, v, self.out)) for n, c in calls], 0.15)
        for name, call in calls:
            density, row = call.density(), f"{name}: times faster than the best dense peer"
            if name in times and self.peer:
                print(f"  {row:<66} {self.peer / times[name]:.2f}  (density {density:.3f})")
                self.note(row, self.peer / times[name], density=density)
            call.close()

    def kmeans(self):
        """The keys, 2 rounds from the same start."""
        svg2, x = self.svg2, self.qkv[1][0]
        mean = x.float().mean(1, keepdim=True)
        pick = torch.randperm(self.tokens, generator=torch.Generator().manual_seed(3))[:self.key_clusters].to(self.device)
        start = (x[:, pick].float() - mean).contiguous()
        relative = (x.float() - mean).to(torch.bfloat16)
        centroid, middle = torch.empty_like(start), torch.empty(self.heads, self.dim, device=self.device)
        label = torch.empty(self.heads, self.tokens, dtype=torch.int32, device=self.device)
        size = torch.empty(self.heads, self.key_clusters, dtype=torch.int32, device=self.device)
        need = ctypes.c_size_t()

        def ours(work):
            svg2.check(svg2.lib.shim_kmeans(svg2.stream, self.heads, self.tokens, self.dim, self.key_clusters, 2, at(x),
                                            at(start), at(centroid), at(middle), at(label), at(size), at(work),
                                            ctypes.byref(need)))

        ours(None)
        work = memory(need.value, self.device)
        flops = 2 * 2.0 * self.heads * self.tokens * self.key_clusters * self.dim
        self.turns([("k-means of the keys, 2 rounds: svg2", flops, lambda: ours(work)),
                    ("k-means of the keys, 2 rounds: torch bmm", flops, lambda: bmm_kmeans(relative, start, 2))], 0.1)
        ours(work)
        same = float((bmm_kmeans(relative, start, 2) == label).float().mean())
        print(f"  k-means: {same:.1%} of the labels are equal (bf16 scores there, f32 here)")
        self.note("k-means: equal labels", same)

    def blocks(self):
        """Whole blocks of 128 x 128 tokens at random."""
        svg2, (q, k, v) = self.svg2, self.qkv
        n = self.tokens // BLOCK
        g = torch.Generator(self.device).manual_seed(4)
        block_map = torch.rand(self.heads, n, n, generator=g, device=self.device).argsort(-1) < max(1, n // 4)
        offset = (torch.arange(n + 1, dtype=torch.int32) * BLOCK).repeat(self.heads, 1).to(self.device)
        byte_map = block_map.to(torch.uint8).contiguous()
        flops = 4.0 * self.dim * BLOCK * BLOCK * float(block_map.sum(dtype=torch.int64))
        need = ctypes.c_size_t()

        def ours(work):
            svg2.check(svg2.lib.shim_blocks(svg2.stream, self.heads, self.tokens, self.dim, n, n, at(offset), at(offset),
                                            at(byte_map), at(q), at(k), at(v), at(self.out), at(work), ctypes.byref(need)))

        ours(None)
        work = memory(need.value, self.device)
        cases = [("128 x 128 blocks, 25 %: svg2", flops, lambda: ours(work))]
        flex = None
        try:
            flex = flex_case(q, k, v, block_map)
            cases.append(("128 x 128 blocks, 25 %: torch FlexAttention", flops, flex))
        except Exception as error:  # no Triton, no compiler
            print(f"  FlexAttention: skipped: {first_line(error)}")
        times = self.turns(cases, 0.2)
        if flex and len(times) == 2:
            ours(work)
            error = rel_l2(self.out[:, :1], flex()[:, :1])
            print(f"  relative L2 between the two {error:.1e}")
            self.note("blocks: svg2 against FlexAttention, relative L2", error)

    def run(self):
        """The number of parts that failed."""
        failed = 0
        print(self.title)
        for part in (self.dense, self.whole_calls, self.kmeans, self.blocks):
            if time.monotonic() > self.begin + self.seconds:
                print(f"  {part.__name__}: skipped, no time left")
                continue
            try:
                part()
            except Exception as error:
                print(f"  {part.__name__}: failed: {first_line(error)}")
                failed += 1
            self.report.write()
        return failed


def main():
    parser = argparse.ArgumentParser(description="svg2_cuda.cu beside PyTorch on the GPU")
    parser.add_argument("--library", required=True)
    parser.add_argument("--json")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--quick", action="store_true", help="smaller tensors")
    args = parser.parse_args()
    begin = time.monotonic()
    if not torch.cuda.is_available():
        print("compare_cuda: PyTorch sees no GPU")
        sys.exit(2)
    device = torch.device("cuda")
    svg2 = Svg2(args.library, torch.cuda.current_stream().cuda_stream)
    svg2.check(svg2.lib.shim_check())
    report = Report(args.json, dict(torch=torch.__version__, device=torch.cuda.get_device_name()))
    clock = Clock(device)
    failed = 0
    with torch.no_grad():
        for shape in SHAPES:
            heads, tokens, dim, *clusters = shape
            if args.quick:
                shape = (heads, tokens // 8 // BLOCK * BLOCK, dim, *clusters)
            if time.monotonic() - begin > 0.8 * args.seconds:
                print(f"{shape}: skipped, no time left")
                continue
            try:
                failed += Problem(svg2, report, clock, shape, device, 9, begin, args.seconds).run()
            except Exception as error:  # not enough memory for the tensors, say
                print(f"{shape}: failed: {first_line(error)}")
                failed += 1
    report.write()
    sys.exit(1 if failed or report.failures else 0)


if __name__ == "__main__":
    main()
