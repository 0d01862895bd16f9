#!/bin/sh
# make pareto: quality of generated clips against density. Writes out/pareto/runs.csv (every clip), pareto.csv (means
# over the clips), pareto.png (gnuplot) and a table.
#
#   examples/wan/pareto.sh BINARY [--quick | --brief | --methods | --times] [--clips N] [--out DIR] [--only NAME,NAME] [--extra "wan options"]
#
# A clip is one prompt and seed. Each is generated dense, then with every setting, all from the same noise; PSNR is
# against the dense one. The first steps are dense in all, as in the published settings; density counts the others.
# --methods: all methods at about the same density, with the error of attention and recall (which double the time).
# --times: what a call of each of these takes beside a dense one, in turn, on Q, K and V of three layers at step 12; writes
# out/pareto/times.csv, and all rounds to rounds.csv. Wants a quiet machine, 2 minutes on 2 cores.
set -eu
wan=$1; shift
clips=3; out=out/pareto; quick=; brief=; methods=; times=; only=; extra=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=1; clips=1 ;;
    --brief) brief=1 ;; # the curves without the ablations, a third of the time
    --methods) methods=1 ;;
    --times) methods=1; times=1 ;;
    --clips) clips=$2; shift ;;
    --out) out=$2; shift ;;
    --only) only=,$2,; shift ;;
    --extra) extra=$2; shift ;;
    *) echo "pareto.sh: unknown option '$1'"; exit 2 ;;
    esac
    shift
done
mkdir -p "$out"
start=dense-steps=4
dense_first=dense-layers=1

# name_value:settings, one per line
runs=$out/runs.txt
: >"$runs"
sweep() { # name, settings with X for the value, values
    name=$1; settings=$2; shift 2
    if [ -n "$only" ] && [ "${only#*,"$name",}" = "$only" ]; then return; fi
    for x in "$@"; do echo "${name}_$x:$(echo "$settings" | sed "s/X/$x/"),$start" >>"$runs"; done
}
if [ -n "$methods" ]; then
    # 15, 25 and 35 % of the pairs; no layer fixed dense
    extra="--check $extra"
    sweep svg2 "svg2,tail=0,density=X" 0.15 0.25 0.35
    sweep svg2-order1 "svg2,tail=2,density=X" 0.15 0.25 0.35
    sweep svg2-recall "svg2,tail=0,recall=0.95,density=X" 0.15 0.25 0.35
    sweep svg2-order1-recall "svg2,tail=2,recall=0.95,density=X" 0.15 0.25 0.35
    sweep svg1 "svg1,keep=X" 0.15 0.25 0.35
    sweep adaspa "adaspa,sparsity=X" 0.85 0.75 0.65
    sweep adaspa-order1 "adaspa,tail=2,sparsity=X" 0.85 0.75 0.65
    # these compute all of Q K; what is about 15, 25 and 35 % is P V (build/svg2 calibrate, on this model's Q and K)
    sweep blasst "blasst,threshold=X" 0.7 0.4 0.25
    sweep energy "energy,energy-lambda=X" -3.1 -4.1 -5
    sweep recall "dense,recall=X" 0.5 0.8 0.9
elif [ -n "$quick" ]; then
    sweep plain "svg2,tail=0,top-p=X,$dense_first" 0.5 0.85
    sweep order0 "svg2,tail=1,density=X,$dense_first" 0.1 0.3
    sweep order1 "svg2,tail=2,density=X,$dense_first" 0.05 0.1 0.3
    sweep raster "raster,tail=0,density=X,$dense_first" 0.1 0.3
elif [ -n "$brief" ]; then
    sweep plain "svg2,tail=0,top-p=X,$dense_first" 0.5 0.7 0.85 0.95
    sweep order0 "svg2,tail=1,density=X,$dense_first" 0.1 0.3
    sweep order1 "svg2,tail=2,density=X,$dense_first" 0.05 0.1 0.2 0.3
    sweep centroid "centroid,tail=2,density=X,$dense_first" 0.1
    sweep raster "raster,tail=0,density=X,$dense_first" 0.3
    sweep raster-order1 "raster,tail=2,density=X,$dense_first" 0.3
    sweep oracle "oracle,tail=0,density=X,$dense_first" 0.3
    sweep oracle-order1 "oracle,tail=2,density=X,$dense_first" 0.1
    sweep target "svg2,tail=2,target-error=X" 0.01 0.02 0.05
else
    # the first layer dense, as in the published settings
    sweep plain "svg2,tail=0,top-p=X,$dense_first" 0.3 0.5 0.7 0.85 0.95
    sweep order0 "svg2,tail=1,density=X,$dense_first" 0.05 0.1 0.2 0.3
    sweep order1 "svg2,tail=2,density=X,$dense_first" 0.05 0.1 0.2 0.3
    sweep order1-row "svg2,tail=2,budget=row,density=X,$dense_first" 0.1 0.2
    sweep order1-spread "svg2,tail=2,route=spread,density=X,$dense_first" 0.1 0.2
    sweep centroid "centroid,tail=2,density=X,$dense_first" 0.1 0.2
    sweep raster "raster,tail=0,density=X,$dense_first" 0.1 0.3
    sweep raster-order1 "raster,tail=2,density=X,$dense_first" 0.1 0.3
    sweep oracle "oracle,tail=0,density=X,$dense_first" 0.1 0.3
    sweep oracle-order1 "oracle,tail=2,density=X,$dense_first" 0.05 0.1 0.2
    # clusters: queries / keys; 71 / 231 are the default for 4,096 tokens
    sweep half-clusters "svg2,tail=2,query-clusters=35,key-clusters=115,density=X,$dense_first" 0.1 0.2
    sweep double-clusters "svg2,tail=2,query-clusters=141,key-clusters=461,density=X,$dense_first" 0.05 0.1
    # no layer fixed dense
    sweep order1-all "svg2,tail=2,density=X" 0.05 0.1 0.2
    sweep target "svg2,tail=2,target-error=X" 0.01 0.02 0.03 0.05 0.1
    sweep target-first "svg2,tail=2,target-error=X,$dense_first" 0.03
    sweep target-order0 "svg2,tail=1,target-error=X" 0.03 0.1
    # iterations a step; from nothing at every step; the tail in f32 products
    sweep step-iters "svg2,tail=2,target-error=0.03,step-iters=X" 0 1 2 4
    sweep cold "svg2,tail=2,cold=1,init-iters=2,target-error=X" 0.03
    sweep fresh "svg2,tail=2,cold=1,init-iters=10,target-error=X" 0.03
    sweep no-bf16 "svg2,tail=2,simd=avx512,target-error=X" 0.03
fi

if [ -n "$times" ]; then
    svg2=$(dirname "$wan")/svg2
    "$wan" dense --out none --dump-qkv "$out/qkv" --dump-steps 12 >"$out/qkv.txt"
    echo "series,value,layer,round,seconds,dense_seconds" >"$out/rounds.csv"
    # mean of the second and third of three calls: what the first one prepares (clusters, search) is not repeated
    call() { # file of Q, K, V; options
        qkv=$1; shift
        "$svg2" attend --q "$qkv:q" --k "$qkv:k" --v "$qkv:v" --frames 16 --repeat 3 --report "$out/time.json" "$@" >"$out/time.txt"
        sed -n 's/.*"step_seconds":.*\[[^,]*, *\(.*\)\].*/\1/p' "$out/time.json" | awk -F, '{ print ($1 + $2) / 2 }'
    }
    for round in 1 2 3; do
        for layer in 1 3 5; do
            qkv=$out/qkv/step12-layer0$layer.safetensors
            while IFS=: read -r name settings; do
                # "svg2,tail=0,density=0.1,dense-steps=4" -> --method svg2 --tail 0 --density 0.1
                options=$(echo "--method $settings" | sed "s/,$start//; s/,/ --/g; s/=/ /g")
                dense=$(call "$qkv" --method dense)
                # shellcheck disable=SC2086
                echo "${name%_*},${name##*_},$layer,$round,$(call "$qkv" $options),$dense" >>"$out/rounds.csv"
            done <"$runs"
        done
    done
    # the median of the rounds of a layer, and the mean of the layers
    awk -F, 'NR > 1 { key = $1 "," $2; if (!(key in seen)) { seen[key] = 1; order[++count] = key }
                      n = ++rounds[key, $3]; ratio[key, $3, n] = $5 / $6 }
        END { print "series,value,time"
              for (i = 1; i <= count; ++i) { key = order[i]; sum = 0
                  for (layer = 1; layer < 6; layer += 2) {
                      a = ratio[key, layer, 1]; b = ratio[key, layer, 2]; c = ratio[key, layer, 3]
                      sum += a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b) }
                  printf "%s,%.4f\n", key, sum / 3 } }' "$out/rounds.csv" >"$out/times.csv"
    cat "$out/times.csv"
    exit 0
fi

clip=0
while [ $clip -lt "$clips" ]; do
    prompt=$(sed -n "$((clip + 1))p" <<'PROMPTS'
red striped disc; blue dotted square; grey waves pan-left
green checked triangle; yellow solid ring; navy tiles still
magenta dotted disc; cyan striped square; brown gradient zoom-in
blue checked ring; red solid triangle; black waves pan-up
yellow striped square; green dotted disc; navy plain still
cyan checked disc; magenta striped ring; grey tiles pan-right
PROMPTS
    )
    [ -n "$prompt" ] || { echo "pareto.sh: there are six clips"; exit 2; }
    echo "clip $((clip + 1)) of $clips: $prompt"
    # shellcheck disable=SC2046,SC2086
    "$wan" dense $(cat "$runs") --prompt "$prompt" --seed $clip --out none --csv "$out/clip-$clip.csv" $extra >"$out/clip-$clip.txt"
    clip=$((clip + 1))
done

# one file, one header; then means over the clips
awk 'FNR > 1 || NR == 1' "$out"/clip-?.csv >"$out/runs.csv"
# settings are quoted and hold commas: cut them out first
sed 's/"[^"]*"//g' "$out/runs.csv" | awk -F, -v OFS=, '
    NR == 1 { print "series", "value", "clips", "density", "density_all", "cost", "psnr", "psnr_least", "ssim", "attention_seconds", "total_seconds",
        "density_pv", "attention_error", "recall", "recall_worst_row"; next }
    $1 == "dense" { next }
    { if (!($1 in n)) order[++count] = $1
      n[$1]++; d[$1] += $4; a[$1] += $5; c[$1] += $6; p[$1] += $7; s[$1] += $8; t[$1] += $9; w[$1] += $10; v[$1] += $18
      if ($12 != "") e[$1] += $12 # checked
      if ($13 != "") { r[$1] += $13; if (!($1 in worst) || $14 < worst[$1]) worst[$1] = $14 }
      if (n[$1] == 1 || $7 < least[$1]) least[$1] = $7 }
    END { for (i = 1; i <= count; ++i) { k = order[i]; at = match(k, /_[^_]*$/)
        printf "%s,%s,%d,%.5f,%.5f,%.5f,%.3f,%.3f,%.5f,%.3f,%.3f,%.5f,", substr(k, 1, at - 1), substr(k, at + 1), n[k], d[k] / n[k], a[k] / n[k],
            c[k] / n[k], p[k] / n[k], least[k], s[k] / n[k], t[k] / n[k], w[k] / n[k], v[k] / n[k]
        printf (k in e) ? "%.5f," : ",", e[k] / n[k]
        if (k in r) printf "%.5f,%.5f\n", r[k] / n[k], worst[k]; else print ","; } }' >"$out/pareto.csv"
awk -F, -v methods="$methods" '
    NR == 1 { printf "%-20s%8s%10s%10s%11s%11s%8s", "", "value", "density", "cost", "PSNR", "least", "SSIM"
        if (methods) printf "%10s%9s%9s%9s%11s", "P V", "error", "recall", "worst", "attention"
        print ""; next }
    $1 != last { if (last != "") print ""; last = $1 }
    { printf "%-20s%8s%8.1f %%%8.1f %%%8.2f dB%8.2f dB%8.4f", $1, $2, 100 * $4, 100 * $6, $7, $8, $9
      if (methods) printf "%8.1f %%%9.4f%9s%9s%9.2f s", 100 * $12, $13, $14 == "" ? "-" : sprintf("%.3f", $14), $15 == "" ? "-" : sprintf("%.3f", $15), $10
      print "" }' "$out/pareto.csv"
[ -z "$methods" ] || exit 0 # a table, no curves

if ! command -v gnuplot >/dev/null; then
    echo "no gnuplot (Debian: gnuplot-nox): $out/pareto.csv is there, pareto.png is not"
    exit 0
fi
series() { # name, title, style: only what has been run
    grep -q "^$1," "$out/pareto.csv" || return 0
    printf '%s"< grep ^%s, %s/pareto.csv" using ($4*100):7 with linespoints %s title "%s"' "$comma" "$1" "$out" "$3" "$2"
    comma=", "
}
comma=
{
    echo "set datafile separator ','"
    echo "set terminal pngcairo size 1000, 680 font 'DejaVu Sans,12' background rgb 'white'"
    echo "set output '$out/pareto.png'"
    echo "set logscale x; set xrange [1.6:60]; set xtics (2, 5, 10, 20, 30, 50) format '%g %%'; set grid back lc rgb '#dddddd'"
    echo "set xlabel 'pairs computed exactly in sparse calls'; set ylabel 'PSNR of the clip against dense attention (dB)'"
    echo "set key inside left top reverse Left spacing 1.15 samplen 2.5; set yrange [18:46]; set border 3; set tics nomirror"
    printf 'plot '
    series oracle-order1 "clusters by exact mass, first order" "lw 1.5 lc rgb '#999999' dt 2 pt 1"
    series double-clusters "first order, twice the clusters" "lw 1.5 lc rgb '#7b1fa2' pt 9"
    series order1 "first order" "lw 3 lc rgb '#d32f2f' pt 7"
    series target "first order, by target error, no layer dense" "lw 1.5 lc rgb '#f57c00' pt 5"
    series order1-all "first order, no layer dense" "lw 1.5 lc rgb '#ef9a9a' dt 3 pt 7"
    series order1-spread "first order, route spread" "lw 1.5 lc rgb '#ec407a' dt 2 pt 2"
    series centroid "first order, chosen by the centroid's view" "lw 1.5 lc rgb '#00897b' dt 2 pt 3"
    series order0 "means (order 0)" "lw 2 lc rgb '#1976d2' pt 7"
    series oracle "clusters by exact mass, rest dropped" "lw 1.5 lc rgb '#999999' pt 1"
    series plain "SVG2: top-p, rest dropped" "lw 2 lc rgb '#388e3c' pt 7"
    series raster-order1 "raster blocks, first order" "lw 1.5 lc rgb '#bcaaa4' dt 2 pt 4"
    series raster "raster blocks, rest dropped" "lw 1.5 lc rgb '#bcaaa4' pt 6"
    echo
} >"$out/pareto.gp"
gnuplot "$out/pareto.gp"
echo "wrote $out/pareto.csv, $out/pareto.png"
