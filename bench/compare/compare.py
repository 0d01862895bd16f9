"""Times svg2.h beside PyTorch's and scikit-learn's CPU code: same tensors, same threads, in turns.

Every pair runs A B A B ...; a ratio is the median of the ratios of neighbours, so a machine that slows down for
a while slows both. Between two runs there is a short pause: both sides have an OpenMP runtime of their own, whose
idle threads spin for some milliseconds before they sleep and would take the cores from the other side.

Started by run.sh, which builds the shared library.
"""
import argparse
import ctypes
import datetime
import json
import platform
import statistics
import sys
import time
import warnings

import numpy as np

DIM = 128
PAUSE_SECONDS = 0.03
TAIL_NONE, TAIL_ORDER0, TAIL_ORDER1 = 1, 2, 3


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


class Svg2:
    """The shared library; raises on every error sentence that it returns."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        for name in ("shim_open", "shim_attend", "shim_kmeans_open", "shim_kmeans_run"):
            getattr(self.lib, name).restype = ctypes.c_char_p
        self.lib.shim_density.restype = ctypes.c_double

    @staticmethod
    def check(text):
        if text:
            raise RuntimeError("svg2: " + text.decode())

    def video(self, frames, height, width, heads, drift=0.0):
        tensors = [np.empty((1, heads, frames * height * width, DIM), np.float32) for _ in range(3)]
        self.lib.shim_synth(frames, height, width, heads, DIM, ctypes.c_double(drift), *map(pointer, tensors))
        return tensors

    def attention(self, threads, heads, tokens, density, tail):
        handle = ctypes.c_void_p()
        self.check(self.lib.shim_open(ctypes.byref(handle), threads, heads, tokens, DIM, ctypes.c_double(density),
                                      tail))
        return handle

    def attend(self, handle, step, q, k, v, out):
        self.check(self.lib.shim_attend(handle, step, *map(pointer, (q, k, v, out))))

    def kmeans(self, threads, tokens, clusters):
        handle = ctypes.c_void_p()
        self.check(self.lib.shim_kmeans_open(ctypes.byref(handle), threads, tokens, DIM, clusters))
        return handle


def seconds(fn, threads):
    """Wall time of one run. A short run that lost the processor to another process is repeated, twice at most, and
    the one that had most of the machine counts: that says nothing about how fast it was while it ran."""
    best_share, best = -1.0, 0.0
    for _ in range(3):
        time.sleep(PAUSE_SECONDS)
        begin, cpu = time.perf_counter(), time.process_time()
        fn()
        wall = time.perf_counter() - begin
        share = (time.process_time() - cpu) / (wall * threads)
        if share > best_share:
            best_share, best = share, wall
        if share > 0.9 or wall > 1.5:
            break
    return best


class Report:
    def __init__(self):
        self.rows = []

    def pair(self, name, other, ours, theirs, goal, **facts):
        """ours and theirs: seconds of neighbouring runs."""
        ratio = statistics.median(t / o for o, t in zip(ours, theirs))
        row = dict(name=name, other=other, ours_seconds=ours, other_seconds=theirs, ratio=ratio, goal=goal, **facts)
        self.rows.append(row)
        note = "" if goal is None else f"goal >= {goal:.1f}x {'met' if ratio >= goal else 'MISSED'}"
        extra = "  ".join(f"{key} {value:.3g}" for key, value in facts.items())
        print(f"{name:<46} {1e3 * statistics.median(ours):9.1f} {1e3 * statistics.median(theirs):9.1f}  {other:<13}"
              f"{ratio:7.2f}x  {note:<22} {extra}", flush=True)


def rel_l2(x, y):
    return float(np.linalg.norm((x - y).ravel().astype(np.float64)) / np.linalg.norm(y.ravel().astype(np.float64)))


def bench_torch(svg2, report, threads, repeat, quick):
    try:
        import torch
    except ImportError:
        print("PyTorch is absent: attention is not compared")
        return {}
    torch.set_num_threads(threads)
    sdpa = torch.nn.functional.scaled_dot_product_attention

    with torch.inference_mode():
        q, k, v = svg2.video(32, 16, 16, 2)
        tensors = [torch.from_numpy(x) for x in (q, k, v)]
        out = np.empty_like(q)
        handle = svg2.attention(threads, 2, q.shape[2], 0.0, 0)
        theirs = sdpa(*tensors).numpy()
        svg2.attend(handle, 0, q, k, v, out)
        error = rel_l2(out, theirs)
        if not error < 1e-4:
            sys.exit(f"compare: dense attention disagrees with PyTorch: relative L2 {error:.2e}")
        ours_times, their_times = [], []
        for _ in range(repeat + 2):
            ours_times.append(seconds(lambda: svg2.attend(handle, 0, q, k, v, out), threads))
            their_times.append(seconds(lambda: sdpa(*tensors), threads))
        report.pair("dense f32 S=8192 H=2 D=128", "torch SDPA", ours_times, their_times, 1.0, rel_l2=error)
        svg2.lib.shim_close(handle)

        first, (q, k, v) = svg2.video(32, 32, 32, 1), svg2.video(32, 32, 32, 1, drift=0.22)
        tensors = [torch.from_numpy(x) for x in (q, k, v)]
        reference = sdpa(*tensors).numpy()
        cases = [(0.1, TAIL_ORDER1, 3.0), (0.1, TAIL_NONE, 3.0)]
        if not quick:
            cases += [(0.2, TAIL_ORDER1, 3.0), (0.05, TAIL_ORDER1, None), (-1.0, TAIL_NONE, None)]
        cases = [dict(handle=svg2.attention(threads, 1, q.shape[2], density, tail), density=density, tail=tail,
                      goal=goal, times=[]) for density, tail, goal in cases]
        out = np.empty_like(q)
        for case in cases:
            svg2.attend(case["handle"], 0, *first, out)
            svg2.lib.shim_keep(case["handle"])
        dense = svg2.attention(threads, 1, q.shape[2], 0.0, 0)

        def warm(handle):  # the clusters go back first, so that every run is the same step; 0.7 MB do not show
            svg2.lib.shim_restore(handle)
            svg2.attend(handle, 1, q, k, v, out)

        dense_times, their_times = [], []
        for _ in range(repeat):
            their_times.append(seconds(lambda: sdpa(*tensors), threads))
            for case in cases:
                case["times"].append(seconds(lambda case=case: warm(case["handle"]), threads))
                case["error"] = rel_l2(out, reference)
            dense_times.append(seconds(lambda: svg2.attend(dense, 1, q, k, v, out), threads))
        report.pair("dense f32 S=32768 H=1 D=128", "torch SDPA", dense_times, their_times, 1.0)
        for case in cases:
            name = f"density {case['density']:.2f}" if case["density"] > 0 else "top-p 0.9"
            tail = {TAIL_NONE: "none", TAIL_ORDER0: "order 0", TAIL_ORDER1: "order 1"}[case["tail"]]
            report.pair(f"sparse warm {name} tail {tail} S=32768", "torch SDPA", case["times"], their_times,
                        case["goal"], density=svg2.lib.shim_density(case["handle"]), rel_l2=case["error"])
            svg2.lib.shim_close(case["handle"])
        svg2.lib.shim_close(dense)
    return {"torch": torch.__version__}


def bench_sklearn(svg2, report, threads, repeat):
    try:
        import sklearn
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        print("scikit-learn is absent: k-means is not compared")
        return {}
    clusters, low, high = 1000, 2, 8
    k = svg2.video(32, 32, 32, 1)[1].reshape(-1, DIM)
    tokens = k.shape[0]
    rng = np.random.default_rng(0)
    start = k[rng.choice(tokens, clusters, replace=False)]
    start_centred = np.ascontiguousarray(start - k.mean(axis=0, dtype=np.float64).astype(np.float32))
    centroid, mean = np.empty((clusters, DIM), np.float32), np.empty(DIM, np.float32)
    label, size = np.empty(tokens, np.int32), np.empty(clusters, np.int32)
    handle = svg2.kmeans(threads, tokens, clusters)

    def ours(iterations):
        svg2.check(svg2.lib.shim_kmeans_run(handle, *map(pointer, (k, start_centred)), iterations,
                                            *map(pointer, (centroid, mean, label, size))))

    def theirs(iterations):
        model = KMeans(clusters, init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(k)
        if model.n_iter_ != iterations:
            sys.exit("compare: scikit-learn stopped early; its time per iteration would be wrong")
        return model

    with threadpool_limits(limits=threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "did not converge" is the point
        ours(high)
        inertia = float(((k - centroid[label]).astype(np.float64) ** 2).sum())
        their_inertia = theirs(high).inertia_
        gap = inertia / their_inertia - 1
        if not abs(gap) < 0.01:
            sys.exit(f"compare: k-means disagrees with scikit-learn: inertia {inertia:.6g} against {their_inertia:.6g}")
        ours_times, their_times = [], []
        for _ in range(repeat + 2):
            # One iteration alone: the difference between two iteration counts, set-up and last assignment taken out.
            a, b = seconds(lambda: ours(low), threads), seconds(lambda: theirs(low), threads)
            ours_times.append((seconds(lambda: ours(high), threads) - a) / (high - low))
            their_times.append((seconds(lambda: theirs(high), threads) - b) / (high - low))
    report.pair(f"k-means iteration S={tokens} C={clusters} D={DIM}", "sklearn Lloyd", ours_times, their_times, 2.0,
                inertia_gap=gap)
    svg2.lib.shim_kmeans_close(handle)
    return {"sklearn": sklearn.__version__}


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description="svg2.h beside PyTorch and scikit-learn on the CPU")
    parser.add_argument("--library", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    parser.add_argument("--json")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--compiler", default="unknown")
    args = parser.parse_args()
    repeat = 3 if args.quick else args.repeat
    svg2, report = Svg2(args.library), Report()
    print(f"{cpu_name()}, {args.threads} threads, {args.compiler}, commit {args.commit}\n"
          f"{'':<46} {'ours ms':>9} {'other ms':>9}  {'other':<13}{'ratio':>8}")
    versions = {"numpy": np.__version__, "python": platform.python_version()}
    versions.update(bench_torch(svg2, report, args.threads, repeat, args.quick))
    versions.update(bench_sklearn(svg2, report, args.threads, repeat))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(dict(cpu=cpu_name(), threads=args.threads, compiler=args.compiler, commit=args.commit,
                           date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                           versions=versions, rows=report.rows), file, indent=1)


if __name__ == "__main__":
    main()
