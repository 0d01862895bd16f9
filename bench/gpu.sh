#!/bin/sh
# svg2_cuda.cu on this machine's GPU: builds, tests and times it, within 9 minutes. Needs the CUDA Toolkit, gcc, g++ and make;
# nothing is installed or downloaded, and nothing is written outside build/ and $OUT.
#
#   bench/gpu.sh [--quick] [--only build,ops,tests,sanitizer,bench,compare]
#
#   ops        every PTX operation beside its formula
#   tests      the programs of tests/test_cuda_*.c, the ones that otherwise run on the emulation
#   sanitizer  the same at small sizes under compute-sanitizer, if it is there: memcheck, racecheck, synccheck
#   bench      bench/bench_cuda.cu
#   compare    bench/compare/compare_cuda.py, if there is a Python with PyTorch that sees the GPU
#
# Results go to $OUT (default bench/results): cuda-NAME.json, cuda-NAME-compare.json, cuda-NAME.txt; logs to $OUT/logs (default
# build/gpu/logs). Every part has a time limit of its own, so that the later ones still run. Exit code: 0 if all passed, 1 if
# not, 2 if there is no GPU or no nvcc.
cd "$(dirname "$0")/.." || exit 1
began=$(date +%s)
total=${GPU_SECONDS:-525}
quick=
only=build,ops,tests,sanitizer,bench,compare
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=--quick ;;
    --only) only=build,$2; shift ;;
    *) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 1 ;;
    esac
    shift
done
logs=${OUT:+$OUT/logs}
logs=${logs:-build/gpu/logs}
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
rm -f "$logs"/*.log "$logs"/*.line "$logs"/summary
summary=$logs/summary
failures=0
say() { printf '%-10s %s\n' "$1" "$2" | tee -a "$summary"; }
fail() { failures=$((failures + 1)); say "$1" "FAILED: $2"; }
echo "$name, $("$nvcc" --version | sed -n 's/.*\(release [0-9.]*\).*/nvcc \1/p'), $(nvidia-smi --query-gpu=driver_version,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null | head -n 1)" |
    tee "$summary"

# ---- build: what fails to build is missed below, the rest goes on
at=$(elapsed)
timeout 240 $MAKE -s -k -j"$(nproc)" NVCC="$nvcc" arch="$arch" gpu >"$logs/build.log" 2>&1
code=$?
if [ $code = 0 ]; then
    say build "$(($(elapsed) - at)) s, $(grep -c 'warning' "$logs/build.log") warnings"
else
    fail build "exit code $code, $logs/build.log"
    tail -n 20 "$logs/build.log"
fi

# one program: its log, and one line "name code passed failed seconds"
cat >"$logs/one.sh" <<'ONE'
log=$1 limit=$2 name=$3; shift 3
begin=$(date +%s)
timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null
code=$?
passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p; s/^\([0-9]*\) passed, .*/\1/p' "$log" | tail -n 1)
failed=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p; s/^[0-9]* passed, \([0-9]*\) failed.*/\1/p' "$log" | tail -n 1)
echo "$name $code ${passed:-0} ${failed:-0} $(($(date +%s) - begin))" >"${log%.log}.line"
ONE

if wants ops; then
    if sh "$logs/one.sh" "$logs/ops.log" 30 ops build/gpu/test_cuda_ops; read -r _ code passed failed s <"$logs/ops.line"; [ "$code" = 0 ]; then
        say ops "$passed passed, $s s"
    else
        fail ops "exit code $code, $failed failed, $logs/ops.log"
        grep -v '^ok' "$logs/ops.log" | head -n 20
    fi
fi

programs=$(find build/gpu -name 'test_cuda_*' -type f -perm -u+x ! -name '*.o' ! -name test_cuda_ops | sort)
if wants tests; then
    limit=$(least 90 "$(left)")
    for p in $programs; do echo "$logs/$(basename "$p").log $limit $(basename "$p") $p"; done | xargs -P 4 -L 1 sh "$logs/one.sh"
    passed=0 failed=0 programs_run=0 broken=''
    for line in "$logs"/test_cuda_*.line; do
        read -r test code p f s <"$line"
        passed=$((passed + p)) failed=$((failed + f)) programs_run=$((programs_run + 1))
        [ "$code" = 0 ] || broken="$broken $test($([ "$code" = 124 ] && echo "out of time" || echo "exit code $code, $f failed"))"
    done
    if [ -z "$broken" ] && [ "$programs_run" = "$(find tests -name 'test_cuda_*.c' | wc -l)" ]; then
        say tests "$programs_run programs, $passed passed"
    else
        fail tests "$programs_run programs, $passed passed, $failed failed:$broken"
        for line in "$logs"/test_cuda_*.line; do
            read -r test code _ <"$line"
            [ "$code" = 0 ] || { echo "-- $test"; grep -v 'OK \]\|RUN  ' "$logs/$test.log" | head -n 15; }
        done
    fi
fi

if wants sanitizer; then
    tool=$(command -v compute-sanitizer || ls "$(dirname "$nvcc")/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer \
        /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)
    if [ -z "$tool" ]; then
        say sanitizer "skipped, there is no compute-sanitizer"
    else
        limit=$(least 75 "$(($(left) - 170))")
        end=$(($(elapsed) + 120))
        # short ones first, every program by every tool; what has no time left is not begun
        for check in memcheck racecheck synccheck; do
            for p in build/gpu/test_cuda_ops $(find build/gpu -name 'small_test_cuda_*' -type f -perm -u+x ! -name '*.o' | sort); do
                echo "$end $logs/$check-$(basename "$p").log $limit $check-$(basename "$p") $tool --tool $check --error-exitcode 9 --print-limit 20 $p"
            done
        done >"$logs/sanitizer.list"
        cat >"$logs/early.sh" <<EARLY
[ \$((\$(date +%s) - $began)) -ge \$1 ] && exit 0
shift
exec sh "$logs/one.sh" "\$@"
EARLY
        xargs -P 8 -L 1 sh "$logs/early.sh" <"$logs/sanitizer.list"
        text='' bad=''
        for check in memcheck racecheck synccheck; do
            clean=0 late=0
            for line in "$logs/$check"-*.line; do
                [ -e "$line" ] || continue
                read -r test code _ <"$line"
                case $code in
                0) clean=$((clean + 1)) ;;
                124 | 137) late=$((late + 1)) ;;
                *) bad="$bad $test($code)" ;;
                esac
            done
            text="$text $check $clean clean, $late out of time, of $(grep -c "/$check-" "$logs/sanitizer.list");"
        done
        if [ -z "$bad" ]; then say sanitizer "${text# }"; else
            fail sanitizer "${text# } errors in:$bad"
            for test in $bad; do grep '=========' "$logs/${test%(*}.log" | head -n 12; done
        fi
    fi
fi

python=
if wants compare; then
    for p in .venv/bin/python python3 python; do
        if command -v "$p" >/dev/null && timeout 60 "$p" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
            python=$p
            break
        fi
    done
fi
if wants bench; then
    seconds=$(($(left) - 15))
    [ -z "$python" ] || seconds=$((seconds * 6 / 10))
    seconds=$(least "$seconds" 200)
    if [ "$seconds" -lt 20 ]; then
        fail bench "no time left"
    else
        # shellcheck disable=SC2086
        timeout -k 5 $((seconds + 10)) build/gpu/bench $quick --seconds "$seconds" --json "$out/cuda-$slug.json" >"$logs/bench.log" 2>"$logs/bench.err"
        code=$?
        cat "$logs/bench.log"
        if [ $code = 0 ]; then say bench "$out/cuda-$slug.json"; else fail bench "exit code $code"; tail -n 5 "$logs/bench.err"; fi
    fi
fi
if wants compare; then
    seconds=$(($(left) - 5))
    if [ -z "$python" ]; then
        say compare "skipped, no Python with PyTorch that sees the GPU"
    elif [ "$seconds" -lt 30 ]; then
        fail compare "no time left"
    else
        # shellcheck disable=SC2086
        timeout -k 5 "$seconds" "$python" bench/compare/compare_cuda.py $quick --library build/gpu/libsvg2.so --seconds $((seconds - 10)) \
            --json "$out/cuda-$slug-compare.json" >"$logs/compare.log" 2>"$logs/compare.err"
        code=$?
        cat "$logs/compare.log"
        if [ $code = 0 ]; then say compare "$out/cuda-$slug-compare.json"; else fail compare "exit code $code"; tail -n 5 "$logs/compare.err"; fi
    fi
fi
for f in bench compare; do [ ! -e "$logs/$f.log" ] || cat "$logs/$f.log"; done | cat "$summary" - >"$out/cuda-$slug.txt"
echo
echo "---- $(elapsed) s"
cat "$summary"
[ $failures = 0 ]
