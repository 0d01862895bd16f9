#!/bin/sh
# svg2_cuda.cu on this machine's GPU: builds, tests and times it, within 9 minutes. Needs the CUDA Toolkit, gcc, g++ and
# make; nothing is installed or downloaded, and nothing is written outside build/ and $OUT.
#
#   bench/gpu.sh [--quick] [--only ops,tests,sanitizer,bench,compare]
#
#   ops        every PTX operation beside its formula
#   tests      the programs of tests/test_cuda_*.c, the ones that otherwise run on the emulation
#   sanitizer  the same at small sizes under compute-sanitizer, if it is there: memcheck, racecheck, synccheck
#   bench      bench/bench_cuda.cu; on a device of compute capability 9.0 beside other builds of svg2_cuda.cu, as far as
#              they pass the tests of attention: those of VARIANTS (names in the Makefile; VARIANTS= for none)
#   compare    bench/compare/compare_cuda.py, if there is a Python with PyTorch that sees the GPU
#
# Results go to $OUT (default bench/results): cuda-NAME.json, cuda-NAME-compare.json, cuda-NAME.txt; logs to
# build/gpu/logs, and packed to $OUT/cuda-NAME-logs.tar.gz if OUT is set. Every part has a time limit of its own, so that
# the later ones still run; GPU_SECONDS is the whole (525). Exit code: 0 if all passed, 1 if not, 2 if there is no GPU or
# no nvcc.
cd "$(dirname "$0")/.." || exit 1
began=$(date +%s)
total=${GPU_SECONDS:-525}
quick=
only=ops,tests,sanitizer,bench,compare
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=--quick ;;
    --only) only=${2:-}; [ $# -lt 2 ] || shift ;;
    *) sed -n '2,19s/^# \{0,1\}//p' "$0"; exit 1 ;;
    esac
    shift
done
logs=build/gpu/logs
out=${OUT:-bench/results}
MAKE=${MAKE:-make}
elapsed() { echo $(($(date +%s) - began)); }
left() { echo $((total - $(elapsed))); }
wants() { case ",$only," in *",$1,"*) true ;; *) false ;; esac; }
least() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if ! [ -x "$nvcc" ]; then
    echo "gpu.sh: no nvcc: install the CUDA Toolkit, or set NVCC"
    exit 2
fi
toolkit=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
if ! $MAKE -s NVCC="$nvcc" build/gpu/probe; then
    echo "gpu.sh: nvcc cannot build a program"
    exit 1
fi
if ! device=$(build/gpu/probe); then
    echo "gpu.sh: no GPU to run on: $device"
    exit 2
fi
arch=${device%% *}
name=${device#* }
slug=$(echo "$name" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-' | sed 's/^nvidia-//')
mkdir -p "$logs" "$out" || exit 1
rm -f "$logs"/*
summary=$logs/summary.txt
failures=0
say() { printf '%-10s %s\n' "$1" "$2" | tee -a "$summary"; }
fail() { failures=$((failures + 1)); say "$1" "FAILED: $2"; }
# after every part: whatever happens later, this is kept
keep() {
    for f in bench compare; do [ ! -s "$logs/$f.log" ] || { echo; cat "$logs/$f.log"; }; done | cat "$summary" - >"$out/cuda-$slug.txt"
    [ -z "${OUT:-}" ] || tar -czf "$out/cuda-$slug-logs.tar.gz" -C build/gpu logs
}
echo "$name, $("$nvcc" --version | sed -n 's/.*\(release [0-9.]*\).*/nvcc \1/p'), driver, largest clock, power limit:" \
    "$(nvidia-smi --query-gpu=driver_version,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null | head -n 1)" | tee "$summary"

# while nvcc works: is there a Python to compare with?
if wants compare; then
    for p in .venv/bin/python python3 python; do
        if command -v "$p" >/dev/null &&
            timeout 100 "$p" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' >"$logs/python.log" 2>&1; then
            echo "$p" >"$logs/python.found"
            break
        fi
    done &
    looking=$!
fi

# ---- build: what fails to build is missed below, the rest goes on
at=$(elapsed)
variants= # each is one more compilation of the file
if wants bench && [ "$(nproc)" -ge 8 ] && [ "$arch" = sm_90a ] && grep -q SVG2_CUDA_OVERLAP svg2_cuda.cu; then variants=${VARIANTS-plain turns_only keys_176 tma multicast}; fi
timeout 240 $MAKE -s -k -j"$(nproc)" NVCC="$nvcc" arch="$arch" variants="$variants" gpu variants >"$logs/build.log" 2>&1
code=$?
if [ $code = 0 ]; then
    say build "$(($(elapsed) - at)) s, $(grep -c 'warning' "$logs/build.log") warnings"
else
    fail build "exit code $code, $logs/build.log"
    grep -v '^make' "$logs/build.log" | head -n 20
fi
keep

# One program: its log, and one line "name code passed failed seconds". It ends `end` seconds after this script began, or
# after `limit`; without time left it is not begun. A log of megabytes keeps its two ends.
cat >"$logs/one.sh" <<ONE
end=\$1 limit=\$2 log=\$3 name=\$4; shift 4
begin=\$(date +%s)
left=\$((end - begin + $began))
[ \$left -lt 3 ] && exit 0
[ \$left -lt \$limit ] && limit=\$left
timeout -k 5 "\$limit" "\$@" >"\$log" 2>&1 </dev/null
code=\$?
passed=\$(sed -n 's/^\\[  PASSED  \\] \\([0-9]*\\) test.*/\\1/p; s/^\\([0-9]*\\) passed, .*/\\1/p' "\$log" | tail -n 1)
failed=\$(sed -n 's/^\\[  FAILED  \\] \\([0-9]*\\) test.*/\\1/p; s/^[0-9]* passed, \\([0-9]*\\) failed.*/\\1/p' "\$log" | tail -n 1)
[ \$code = 0 ] && [ "\${passed:-0}" = 0 ] && code=99 # it ended early
if [ "\$(wc -c <"\$log")" -gt 1000000 ]; then
    { head -c 300000 "\$log"; printf '\\n[...]\\n'; tail -c 300000 "\$log"; } >"\$log.cut" && mv "\$log.cut" "\$log"
fi
echo "\$name \$code \${passed:-0} \${failed:-0} \$((\$(date +%s) - begin))" >"\${log%.log}.line"
ONE
meaning() { # exit code, failed tests
    case $1 in
    1) echo "$2 failed" ;;
    99) echo "no test passed" ;;
    124 | 137) echo "out of time" ;;
    *) echo "exit code $1, $2 failed" ;;
    esac
}
# what a log says of failures, without what went well
trouble() { grep -v 'OK \]\|RUN  \|^ok \|^\[==' "$1" | head -n "$2"; }

if wants ops && [ "$(left)" -gt 5 ]; then
    sh "$logs/one.sh" "$total" 30 "$logs/ops.log" ops build/gpu/test_cuda_ops
    read -r _ code passed failed s <"$logs/ops.line"
    if [ "$code" = 0 ]; then
        say ops "$passed passed, $s s$(sed -n 's/^answer: /; /p; s/^skipped: /; skipped: /p' "$logs/ops.log")"
    else
        fail ops "$(meaning "$code" "$failed"), $passed passed"
        trouble "$logs/ops.log" 20
        grep '^answer: ' "$logs/ops.log"
    fi
    keep
fi

if wants tests; then
    at=$(elapsed)
    end=$(least $((at + 120)) "$total")
    for source in tests/test_cuda_*.c; do
        t=$(basename "$source" .c)
        echo "$end 100 $logs/$t.log $t env LITE_SECONDS=60 build/gpu/$t"
    done >"$logs/tests.list"
    xargs -P "$(least "$(nproc)" 8)" -L 1 sh "$logs/one.sh" <"$logs/tests.list"
    passed=0 failed=0 broken='' slowest=0
    while read -r _ _ _ t _; do
        if ! [ -e "$logs/$t.line" ]; then
            broken="$broken $t (no time left)"
            continue
        fi
        read -r _ code p f s <"$logs/$t.line"
        passed=$((passed + p)) failed=$((failed + f))
        [ "$s" -le "$slowest" ] || slowest=$s
        [ "$code" = 0 ] || broken="$broken $t ($(meaning "$code" "$f"))"
    done <"$logs/tests.list"
    if [ -z "$broken" ]; then
        say tests "$(wc -l <"$logs/tests.list") programs, $passed passed, $(($(elapsed) - at)) s, the slowest $slowest s"
    else
        fail tests "$passed passed, $failed failed:$broken"
        while read -r _ _ _ t _; do
            if [ -e "$logs/$t.line" ]; then
                read -r _ code _ <"$logs/$t.line"
                [ "$code" = 0 ] || { echo "-- $t"; trouble "$logs/$t.log" 15; }
            fi
        done <"$logs/tests.list"
    fi
    keep
fi

if wants sanitizer; then
    tool=$(command -v compute-sanitizer || ls "$toolkit/bin/compute-sanitizer" "$toolkit/compute-sanitizer/compute-sanitizer" \
        /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)
    if [ -z "$tool" ]; then
        say sanitizer "skipped, there is no compute-sanitizer"
    else
        # alone it has all the time, else what the benchmarks leave
        reserve=10
        ! wants bench || reserve=$((reserve + 140))
        ! wants compare || reserve=$((reserve + 80))
        end=$((total - reserve))
        at=$(elapsed)
        # every program by every tool; what has no time left is not begun
        for check in memcheck racecheck synccheck; do
            echo "$end 60 $logs/$check-ops.log $check-ops $tool --tool $check --error-exitcode 9 --print-limit 20 build/gpu/test_cuda_ops"
            for source in tests/test_cuda_*.c; do
                t=$(basename "$source" .c)
                echo "$end 120 $logs/$check-$t.log $check-$t $tool --tool $check --error-exitcode 9 --print-limit 20 build/gpu/small_$t"
            done
        done >"$logs/sanitizer.list"
        xargs -P "$(least "$(nproc)" 8)" -L 1 sh "$logs/one.sh" <"$logs/sanitizer.list"
        text='' bad='' done=0
        for check in memcheck racecheck synccheck; do
            clean=0 late=0
            for test in $(sed -n "s/.* \($check-[a-z_]*\) .* --tool .*/\1/p" "$logs/sanitizer.list"); do
                code=124
                [ ! -e "$logs/$test.line" ] || read -r _ code _ <"$logs/$test.line"
                case $code in
                0) clean=$((clean + 1)) ;;
                124 | 137) late=$((late + 1)) ;;
                *) bad="$bad $test($code)" ;;
                esac
            done
            text="$text $check $clean clean, $late out of time;" done=$((done + clean))
        done
        text="${text# } $(($(elapsed) - at)) s"
        if [ "$done" -gt 0 ] && [ -z "$bad" ]; then say sanitizer "$text"; else
            fail sanitizer "$text${bad:+; errors in:$bad}"
            for test in $bad; do
                echo "-- $test"
                grep -h '=========\|ERROR\|error:' "$logs/${test%(*}.log" | head -n 8
            done
        fi
    fi
    keep
fi

python=
if wants compare; then
    wait "$looking"
    [ ! -e "$logs/python.found" ] || python=$(cat "$logs/python.found")
fi
# clocks, power and temperature once a second, for those who wonder about a row
watch() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader -l 1 >"$logs/$1.clocks" 2>&1 &
    watching=$!
}
unwatch() { [ -z "${watching:-}" ] || kill "$watching" 2>/dev/null; watching=; }
others=
if wants bench; then
    # A build that fails, or hangs, is not compared; and not one whose boxes this device has not.
    : >"$logs/variants.list"
    for v in $variants; do
        case $v in tma | multicast)
            if grep -q '^answer: one-row boxes: NO' "$logs/ops.log" 2>/dev/null; then say "$v" "not compared: see ops"; continue; fi ;;
        esac
        [ ! -e "build/gpu/variant_$v.so" ] ||
            echo "$(least $(($(elapsed) + 60)) "$total") 60 $logs/$v.log $v env LITE_SECONDS=20 'TEST_ONLY=*_wgmma' build/gpu/${v}_attention" >>"$logs/variants.list"
    done
    xargs -P "$(least "$(nproc)" 8)" -L 1 sh "$logs/one.sh" <"$logs/variants.list"
    while read -r _ _ _ v _; do
        code='no time left' passed=0 failed=0
        [ ! -e "$logs/$v.line" ] || read -r _ code passed failed _ <"$logs/$v.line"
        if [ "$code" = 0 ]; then
            say "$v" "$passed passed"
            others="$others --variant build/gpu/variant_$v.so"
        else
            fail "$v" "$(meaning "$code" "$failed"), $passed passed; not compared"
            trouble "$logs/$v.log" 8
        fi
    done <"$logs/variants.list"
    keep
fi
if wants bench; then
    seconds=$(($(left) - 15))
    [ -z "$python" ] || seconds=$((seconds * 6 / 10))
    seconds=$(least "$seconds" 200)
    if [ "$seconds" -lt 20 ]; then
        fail bench "no time left"
    else
        # cuBLAS, for its rate, from beside nvcc or from PyTorch
        paths=$toolkit/lib64:$toolkit/targets/x86_64-linux/lib
        [ -z "$python" ] || paths=$paths:$("$python" -c 'import glob, sysconfig
print(":".join(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib")))' 2>/dev/null)
        watch bench
        # shellcheck disable=SC2086
        LD_LIBRARY_PATH=$paths${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} timeout -k 5 $((seconds + 10)) build/gpu/bench $quick --seconds "$seconds" $others \
            --json "$out/cuda-$slug.json" >"$logs/bench.log" 2>"$logs/bench.err"
        code=$?
        unwatch
        cat "$logs/bench.log"
        if [ $code = 0 ]; then say bench "$out/cuda-$slug.json"; else
            fail bench "exit code $code"
            tail -n 8 "$logs/bench.err"
        fi
    fi
    keep
fi
if wants compare; then
    seconds=$(($(left) - 5))
    if [ -z "$python" ]; then
        say compare "skipped, no Python with PyTorch that sees the GPU: $(tail -n 1 "$logs/python.log" 2>/dev/null)"
    elif [ "$seconds" -lt 30 ]; then
        fail compare "no time left"
    else
        watch compare
        # shellcheck disable=SC2086
        TORCHINDUCTOR_CACHE_DIR=$PWD/build/gpu/inductor TRITON_CACHE_DIR=$PWD/build/gpu/triton \
            timeout -k 5 "$seconds" "$python" -u bench/compare/compare_cuda.py $quick --library build/gpu/libsvg2.so --seconds $((seconds - 10)) \
            --json "$out/cuda-$slug-compare.json" >"$logs/compare.log" 2>"$logs/compare.err"
        code=$?
        unwatch
        cat "$logs/compare.log"
        if [ $code = 0 ]; then say compare "$out/cuda-$slug-compare.json"; else
            fail compare "exit code $code"
            tail -n 8 "$logs/compare.err"
        fi
    fi
fi
keep
echo
echo "---- $(elapsed) s"
cat "$summary"
[ $failures = 0 ]
