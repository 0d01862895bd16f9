#!/bin/sh
# The tools with --backend cuda, beside the same tools on the CPU: tests/test_tool_cuda.sh [svg2 wan]
#   svg2, wan     built with the CUDA backend: build/tests/svg2_cuda, build/tests/wan_cuda (on the emulation), or
#                 build/gpu/svg2, build/gpu/wan on a GPU
# build/svg2 and build/wan have to be there, too: they have no CUDA backend, and say so.
cd "$(dirname "$0")/.." || exit 1
has_json=$(CC="${CC:-cc}" tests/deps.sh has cjson/cJSON.h && echo yes)
root=$PWD
is_emulated=$([ $# = 0 ] && echo yes)
svg2=$root/${1:-build/tests/svg2_cuda}
wan=$root/${2:-build/tests/wan_cuda}
dir=$(mktemp -d /tmp/svg2_tool_cuda_XXXXXX) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
cd "$dir" || exit 1
export OMP_WAIT_POLICY=passive ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0"

passed=0; failed=0
pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "fail: $*"; }
check() { # name, command
    name=$1; shift
    if "$@" >new 2>&1; then pass; else fail "$name"; head -n 20 new; fi
    mv new log
}
refused() { # code, words, command: it ends with this code and one line with these words, and makes no file
    code=$1 words=$2; shift 2
    before=$(find . | sort)
    "$@" >/dev/null 2>error.txt
    got=$?
    if [ $got = "$code" ] && [ "$(wc -l <error.txt)" = 1 ] && grep -q -e "$words" error.txt; then pass; else
        fail "exit code $got in place of $code, or not one line with '$words': $*"; cat error.txt; fi
    [ "$before" = "$(find . | sort)" ] || fail "made files: $*"
}
: >error.txt
number() { # key, JSON file
    grep -o "\"$1\":[[:space:]]*[-+.0-9e]*" "$2" | head -n 1 | sed 's/.*:[[:space:]]*//'
}
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a ~ /^[0-9]/ && a + 0 <= b) }'; } # no number is too much
near() { # bound, a, b: tensors in files
    error=$("$svg2" compare "$2" "$3" | sed -n 's/^rel_l2 *//p')
    if at_most "$error" "$1"; then pass; else fail "$2 differs from $3 by ${error:-?}, bound $1"; fi
}
same() { # bound, name, key, a, b: numbers in JSON files
    a=$(number "$3" "$4") b=$(number "$3" "$5")
    d=$(awk -v a="$a" -v b="$b" 'BEGIN { if (a == "" || b == "") exit; d = a - b; print d < 0 ? -d : d }')
    if at_most "$d" "$1"; then pass; else fail "$2: $3 is ${a:-missing} and ${b:-missing}"; fi
}
no_more() { # margin, name, key, a, b: a number of JSON file a is at most that of b
    a=$(number "$3" "$4") b=$(number "$3" "$5")
    if at_most "$a" "$(awk -v b="$b" -v margin="$1" 'BEGIN { print b + margin }')"; then pass; else fail "$2: $3 is ${a:-missing} and ${b:-missing}"; fi
}
differ() { if [ -f "$2" ] && ! cmp -s "$2" "$3"; then pass; else fail "$1"; fi; } # name, a, b

# ---- svg2 ----
attend() { "$svg2" attend --q q.npy --k k.npy --v v.npy --threads 1 "$@"; }
both() { # options: the same call on the CPU and on the GPU, with reports
    for backend in cpu cuda; do
        check "attend on $backend $*" attend --backend $backend --check --out $backend.npy \
            ${has_json:+--report $backend.json} "$@"
    done
}
same_quality() { # name: of the two reports of both()
    [ "$has_json" ] || return
    for key in rel_l2 recall_mean density; do same 0.01 "$1" $key cpu.json cuda.json; done
}
# The kernels of wgmma leave out larger tiles than the CPU, and so fewer.
as_good() { # name: of the two reports of both(), with a rule
    [ "$has_json" ] || return
    no_more 0.01 "$1" rel_l2 cuda.json cpu.json
    for key in recall_mean density_pv; do no_more 0.01 "$1" $key cpu.json cuda.json; done
}
check "help" sh -c "'$svg2' attend --help | grep -q -e '--backend cpu|cuda'"
check "synth" "$svg2" synth --out . --frames 2 --height 8 --width 10 --heads 2 --dim 64 --seed 4
cpu_svg2() { "$root/build/svg2" attend --q q.npy --k k.npy --v v.npy --out x.npy "$@"; }
refused 2 'backend cuda.*make cuda' cpu_svg2 --backend cuda
refused 2 '--simd.*--backend cuda' attend --backend cuda --simd scalar --out x.npy
refused 2 "unknown backend 'gpu'" attend --backend gpu --out x.npy

both --method dense # f32 inputs are rounded to bf16, by up to 2^-9
check "attend says where" grep -q '^call  *dense, cuda, [^ ]' log
near 0.005 cuda.npy cpu.npy
if [ "$has_json" ]; then
    check "report" grep -q '"backend":[[:space:]]*"cuda"' cuda.json
    check "report of the device" grep -q '"device":[[:space:]]*"[^"]' cuda.json
fi
both --top-p 1 --min-keep 1 # every block
near 0.005 cuda.npy cpu.npy
both --density 0.2
same_quality "density 0.2"
cp cuda.npy first.npy
check "again" attend --out cuda.npy --backend cuda --density 0.2
check "same bits" cmp first.npy cuda.npy

# Clusters that follow from step to step: 1 + 1 + 1 iterations are 3, and not 1.
clusters() { attend --backend cuda --density 0.3 --step-iters 1 "$@"; }
check "three steps" clusters --dump warm --init-iters 1 --repeat 3
check "three iterations" clusters --dump long --init-iters 3
check "one iteration" clusters --dump cold --init-iters 1
check "the same clusters of queries" cmp warm/labels_q.npy long/labels_q.npy
check "the same clusters of keys" cmp warm/labels_k.npy long/labels_k.npy
differ "a step does not start from the clusters of the last" warm/labels_q.npy cold/labels_q.npy

# batch, grouped heads, text and padding, f16, a head_dim that is padded
check "synth, f16" "$svg2" synth --out . --frames 2 --height 6 --width 8 --heads 4 --heads-kv 2 --batch 2 --dim 40 \
    --text 20 --dtype f16
both --text-last 20 --text-valid 13 --target-error 0.05 --repeat 2
same_quality "f16"
both --text-last 20 --text-valid 13 --method dense
near 0.001 cuda.npy cpu.npy

# the other methods, and the rules that leave tiles out. In natural order: how many rows start from one place of the diagonal
# differs.
check "synth, tiles" "$svg2" synth --out . --frames 4 --height 8 --width 8 --heads 2 --dim 64 --text 20
for options in "--method svg1 --frames 4 --keep 0.5 --block 32" "--method adaspa --sparsity 0.5 --block 32 --repeat 2" \
    "--method adaspa --sparsity 0.5 --block 32 --compensate 2 --repeat 3 --search-steps 0,2"; do
    # shellcheck disable=SC2086
    both --text-last 20 --text-valid 13 $options
    same_quality "$options"
    if [ "$has_json" ]; then same 0.02 "$options" density_pv cpu.json cuda.json; fi
done
for options in "--method energy --energy-lambda -1.5 --order natural" \
    "--method svg1 --frames 4 --keep 0.5 --block 32 --threshold 0.5 --order natural" "--density 0.4 --compensate 0 --recall 0.8"; do
    # shellcheck disable=SC2086
    both --text-last 20 --text-valid 13 $options
    as_good "$options"
    if [ "$is_emulated" ]; then # a device whose tiles are as small as the CPU's
        export EMU_DEVICE=80
        # shellcheck disable=SC2086
        both --text-last 20 --text-valid 13 $options
        unset EMU_DEVICE
        same_quality "8.0, $options"
        if [ "$has_json" ]; then same 0.02 "8.0, $options" density_pv cpu.json cuda.json; fi
    fi
done
for options in "--method svg1 --frames 4 --keep 1" "--method adaspa --sparsity 0 --repeat 2" "--method blasst --threshold 1e-30" \
    "--method dense --recall 1"; do # everything
    # shellcheck disable=SC2086
    both --text-last 20 --text-valid 13 $options
    near 0.005 cuda.npy cpu.npy
done
both --method dense --recall 0.8
if [ "$has_json" ]; then
    check "recall as promised" awk -v r="$(number recall_min cuda.json)" 'BEGIN { exit !(r >= 0.799) }'
fi

# ---- wan ----
model=$root/examples/wan/model.safetensors
prompt="red striped disc; ring; navy waves pan-left"
generate() {
    "$wan" --model "$model" --threads 1 --frames 2 --height 16 --width 16 --steps 3 --guidance 1 --prompt "$prompt" "$@"
}
test_wan() {
    check "wan: help" sh -c "'$wan' --help | grep -q -e '--backend cpu|cuda'"
    refused 2 'backend cuda.*make cuda' "$root/build/wan" --model "$model" --backend cuda
    refused 2 'backend cuda.*make cuda' "$root/build/wan" --model "$model" dense svg2,backend=cuda
    for method in oracle,density=0.3 tiles raster; do
        refused 2 "--backend cuda has no method ${method%,*}" generate --backend cuda dense $method
    done
    refused 2 "run 'slow': simd is of the CPU" generate --backend cuda slow:svg2,simd=scalar
    refused 2 "backend: 'gpu' is not one of" generate --backend gpu
    refused 2 "backend: 'gpu' is not one of" generate svg2,backend=gpu
    refused 1 "GPU's memory" generate --backend cuda --frames 100000 --height 512 --width 512

    # Latents, after the rounding errors of all layers and steps.
    check "wan on the CPU" generate --check --out o --latent cpu dense svg2,density=0.3 centroid,density=0.3 \
        oracle,density=0.3
    check "wan" generate --check --out o2 --latent gpu --backend cuda dense svg2,density=0.3 centroid,density=0.3 \
        cold:svg2,density=0.3,cold=1 oracle,density=0.3,backend=cpu
    check "wan says where" grep -q '^self-attention with backend cuda: [^ ]' log
    check "wan: report" grep -q '"backend": "cuda", "device": "[^"]' o2/report.json
    near 0.01 gpu/dense.safetensors cpu/dense.safetensors
    near 0.02 gpu/svg2.safetensors cpu/svg2.safetensors
    near 0.02 gpu/centroid.safetensors cpu/centroid.safetensors
    check "wan: a run on the CPU" cmp gpu/oracle.safetensors cpu/oracle.safetensors
    differ "wan: a step does not start from the clusters of the last" gpu/svg2.safetensors gpu/cold.safetensors
    for run in svg2 centroid; do
        for side in o o2; do grep -A 4 "\"name\": \"$run\"" $side/report.json >$side.json; done
        for key in attention_error recall density; do same 0.01 "wan, $run" $key o.json o2.json; done
    done
    # 128 tokens, so that there are tiles to leave out
    for backend in cpu cuda; do
        check "wan on $backend, the other methods" generate --frames 4 --height 24 --width 24 --check --out o.$backend \
            --latent $backend --backend $backend dense svg1,keep=0.5,block=16 adaspa,sparsity=0.5,block=16 \
            energy,energy-lambda=-1,order=natural
    done
    for run in svg1 adaspa energy; do
        for side in cpu cuda; do grep -A 4 "\"name\": \"$run\"" o.$side/report.json >$side.json; done
        if [ $run = energy ]; then
            no_more 0.03 "wan, energy" attention_error cuda.json cpu.json
            no_more 0.03 "wan, energy" recall cpu.json cuda.json
            continue
        fi
        for key in attention_error recall density; do same 0.03 "wan, $run" $key cpu.json cuda.json; done
    done
    # Two networks, of which the second starts without the clusters of the first; two branches, at guidance 3, which
    # multiplies errors.
    for backend in cpu cuda; do
        check "wan on $backend, with a schedule" generate --out none --latent $backend --backend $backend \
            --guidance 3 --low-noise "$model" svg2,dense-steps=1,dense-layers=2,init-on-dense=1
    done
    near 0.05 cuda/svg2.safetensors cpu/svg2.safetensors
}
if [ "$has_json" ]; then
    test_wan
    echo "$passed passed, $failed failed"
else
    echo "skipped: without cJSON svg2 writes no report, and wan cannot read a model"
    echo "$passed passed, $failed failed, 1 skipped"
fi
[ $failed = 0 ]
