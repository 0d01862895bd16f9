#!/bin/sh
# make demo: dense against sparse attention on made-up video attention, and a picture of what was computed.
set -eu
tool=$1
out=out/demo
mkdir -p "$out"
report=; picture=
CC=${CC:-cc} tests/deps.sh has cjson/cJSON.h && report=1
CC=${CC:-cc} tests/deps.sh has png.h && picture=1

echo "One attention layer of a small video: 8 frames of 24 x 40 tokens, 4 heads of 128 (procedural scene, 3-D RoPE)."
"$tool" synth --out "$out" --frames 8 --height 24 --width 40 --heads 4 --dim 128
files="--q $out/q.npy --k $out/k.npy --v $out/v.npy --frames 8 --frame-tokens 960 --repeat 3"
run() { # name, options
    name=$1; shift
    # shellcheck disable=SC2086
    "$tool" attend $files --out "$out/$name.npy" ${report:+--report "$out/$name.json"} "$@" >"$out/$name.txt"
}
value() { sed -n "s/.*\"$2\": *\([-0-9.e+]*\).*/\1/p" "$out/$1.json" | head -n 1; }
total() { sed -n '/"seconds"/,/}/s/.*"total": *\([-0-9.e+]*\).*/\1/p' "$out/$1.json" | head -n 1; }

run dense --method dense
for c in 0 1 2; do
    set -- --density 0.15 --compensate $c --check
    if [ $c = 2 ] && [ -n "$picture" ]; then set -- "$@" --picture "$out/map.png"; fi
    run sparse$c "$@"
done
run svg2 --compensate 0 --top-p 0.9 --check

if [ -z "$report" ]; then
    tail -n 12 "$out"/dense.txt "$out"/sparse2.txt
    exit 0
fi
dense=$(total dense)
printf '\n%-44s %8s %8s %9s %9s %8s\n' "" density recall rel_l2 seconds faster
printf '%-44s %8s %8s %9s %9.3f %8s\n' "dense" 1 1 0 "$dense" 1.0x
row() { # name, label
    awk -v label="$2" -v d="$(value "$1" density)" -v r="$(value "$1" recall_mean)" -v e="$(value "$1" rel_l2)" \
        -v s="$(total "$1")" -v dense="$dense" \
        'BEGIN { printf "%-44s %8.3f %8.3f %9.4f %9.3f %7.1fx\n", label, d, r, e, s, dense / s }'
}
row svg2 "SVG2: top-p 0.9, skipped keys dropped"
row sparse0 "15 %, skipped keys dropped"
row sparse1 "15 %, one virtual key per skipped cluster"
row sparse2 "15 %, and the first-order term"
[ -z "$picture" ] || printf '\nblock maps: %s/map.png    reports: %s/*.json\n' "$out" "$out"
