#!/bin/sh
# make demo: dense against sparse attention on made-up video attention, and a picture of what was computed.
set -eu
tool=$1
out=out/demo
mkdir -p "$out"
report=; picture=
CC=${CC:-cc} tests/deps.sh has cjson/cJSON.h && report=1
CC=${CC:-cc} tests/deps.sh has png.h && picture=1

echo "One attention layer of a small video: 16 frames of 24 x 40 tokens, 2 heads of 128 (moving objects, 3-D RoPE)."
"$tool" synth --out "$out" --frames 16 --height 24 --width 40 --heads 2 --dim 128
run() { # name, options
    name=$1; shift
    printf '.' >&2
    "$tool" attend --q "$out/q.npy" --k "$out/k.npy" --v "$out/v.npy" --frames 16 --out "$out/$name.npy" --repeat 2 \
        ${report:+--report "$out/$name.json"} "$@" >"$out/$name.txt"
}
run dense --method dense
run svg2 --compensate 0 --top-p 0.9 --check
for c in 0 1 2; do
    set -- --density 0.1 --compensate $c --check
    if [ $c = 2 ] && [ -n "$picture" ]; then set -- "$@" --picture "$out/map.png"; fi
    run tail$c "$@"
done
echo >&2
if [ -z "$report" ]; then
    for name in dense svg2 tail0 tail1 tail2; do echo "== $name"; cat "$out/$name.txt"; done
    exit 0
fi
value() { sed -n "s/^[[:space:]]*\"$2\":[[:space:]]*\([-0-9.e+]*\).*/\1/p" "$out/$1.json" | head -n 1; }
row() { # name, label
    awk -v label="$2" -v density="$(value "$1" density)" -v recall="$(value "$1" recall_mean)" -v error="$(value "$1" rel_l2)" \
        -v seconds="$(value "$1" total)" -v faster="$(value "$1" speedup)" 'BEGIN {
            if (recall == "") { recall = faster = 1; error = 0 }
            printf "%-46s %7.1f %% %8.3f %10.4f %9.2f %8.1fx\n", label, 100 * density, recall, error, seconds, faster }'
}
printf '\n%-46s %9s %8s %10s %9s %9s\n' "" density recall "rel. error" seconds faster
row dense "dense"
row svg2 "SVG2: top-p 0.9, the rest dropped"
row tail0 "10 % of the pairs, the rest dropped"
row tail1 "10 %, one virtual key per skipped cluster"
row tail2 "10 %, and the first-order term (the default)"
echo
echo "density: pairs computed exactly.  recall: attention mass of these pairs.  rel. error: L2, against dense."
echo "seconds: one warm call, clustering included.  faster: than dense attention in the same run."
[ -z "$picture" ] || echo "block maps: $out/map.png    reports: $out/*.json"
