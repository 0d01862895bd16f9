#!/bin/sh
# make test: builds and runs everything, two at a time, and adds it up. Logs are in build/test-logs.
#   tests/run.sh [quick]    quick: release programs, header and tool only
MAKE=${MAKE:-make}
CC=${CC:-gcc}
OMP_WAIT_POLICY=passive # programs run two at a time: waiting threads should not hold a processor
export CC MAKE OMP_WAIT_POLICY
cd "$(dirname "$0")/.." || exit 1
logs=build/test-logs
rm -rf "$logs"
mkdir -p "$logs"
jobs=$(nproc 2>/dev/null || echo 2)
started=$(date +%s)

if ! tests/deps.sh has cmocka.h; then
    echo "make test needs cmocka: install the Debian package libcmocka-dev"
    echo "0 passed, 1 failed"
    exit 1
fi

base="base dtype dispatch kmeans permute score select attention skip tiles front mass schedule parallel pipeline stats clip file wan"
long="wan pipeline attention"
rest=$(for t in $base; do case " $long " in *" $t "*) ;; *) echo "$t" ;; esac; done)
tools="tool wan_tool"
if ! tests/deps.sh has cjson/cJSON.h; then
    tools=tool
    echo "skipped: build/wan cannot read a model without cJSON (Debian: libcjson-dev), nor can its test"
fi
# the kernels of svg2_cuda.cu, executed on this machine's processor
cuda=$(for f in tests/test_cuda_*.c; do f=${f#tests/test_}; echo "${f%.c}"; done)
emu=emu/test_emu
if ! echo '#include <cuda_runtime.h>' | ${CXX:-g++} -E -x c++ -I"${CUDA:-/usr/local/cuda}/include" - >/dev/null 2>&1; then
    cuda=; emu=
    echo "skipped: no headers of the CUDA Toolkit (looked in ${CUDA:-/usr/local/cuda}): svg2_cuda.cu is not tested"
fi
list=$logs/list
: >"$list"
build() { # config, targets
    config=$1; shift
    configs="$configs $config"
    printf '%s:\n\t@$(MAKE) -s -k config=%s %s >%s 2>&1 || echo %s >>%s\n' "$config" "$config" "$*" "$logs/build-$config.log" \
        "$config" "$logs/broken" >>"$logs/builds.mk"
}
build_all() { # two configurations side by side share the jobs; compiler output is shown only when there is any
    $MAKE -s build/.deps
    # shellcheck disable=SC2086
    $MAKE -s -k -j"$jobs" -f "$logs/builds.mk" $configs || echo "$configs" >>"$logs/broken"
    for config in $configs; do
        cat "$logs/build-$config.log"
        if grep -q warning: "$logs/build-$config.log"; then echo "$config" >>"$logs/broken"; fi
    done
}
configs=
dir() { [ "$1" = release ] && echo build || echo "build/$1"; }
add() { # config, test programs
    config=$1; shift
    for t in "$@"; do echo "$config-$t $(dir "$config")/tests/test_$t" >>"$list"; done
}
emulated() { # the same, with CUDA threads and copies in another order than the usual one (round robin, copies late)
    config=$1 order=$2; shift 2
    for t in "$@"; do
        device=
        # whole calls: the kernels of wgmma are looked at by the tests of the stages; here they take eight times as long
        case $config-$t in tsan-cuda_backend | tsan-cuda_graph) device=EMU_DEVICE=80 ;; esac
        echo "$config-$t-$(echo "$order" | tr ' ' -) env 'EMU_SCHEDULE=$order' $device $(dir "$config")/tests/test_$t" >>"$list"
    done
}
targets() { config=$1; shift; for t in "$@"; do echo "$(dir "$config")/tests/test_$t"; done; }

echo "building (gcc warnings are errors of this test)"
# shellcheck disable=SC2046,SC2086
{
    build release all $(targets release $base $tools $cuda) ${emu:+build/$emu build/emu/bench build/tests/test_cuda_ops build/tests/tma_attention build/tests/multicast_attention build/tests/multicast_skip build/tests/svg2_cuda build/tests/wan_cuda}
    if [ "${1:-}" != quick ]; then
        build asan build/asan/svg2 build/asan/wan $(targets asan $base $tools $cuda) ${emu:+build/asan/$emu} \
            build/asan/tests/fuzz_desc build/asan/tests/fuzz_file
        build tsan $(targets tsan parallel $cuda) ${emu:+build/tsan/$emu build/tsan/tests/multicast_attention}
        build scalar $(targets scalar dtype dispatch kmeans attention skip tiles front mass score select pipeline)
    fi
    build_all
}
# the long ones first
if [ "${1:-}" != quick ]; then
    echo "nvcc tests/nvcc.sh" >>"$list"
    # shellcheck disable=SC2086
    {
        add asan $long
        emulated tsan "random mixed 1" $cuda
        emulated asan "last early 2" $cuda
        emulated release "random late 3" $cuda
        add asan $rest
    }
    add tsan parallel
    [ -z "$emu" ] || echo "emu-bench build/emu/bench --shape 1,10,16,2,64,4,11" >>"$list"
    for test in dense_sizes_wgmma same_bits_wgmma; do
        [ -z "$emu" ] || echo "tsan-multicast_attention-$test env 'EMU_SCHEDULE=random mixed 1' TEST_ONLY=$test build/tsan/tests/multicast_attention" >>"$list"
    done
    for config in ${emu:+release asan tsan}; do echo "$config-emu $(dir "$config")/$emu" >>"$list"; done
fi
# shellcheck disable=SC2086
add release $cuda ${emu:+cuda_ops} $long
# K and V by the copy engine, and by it to two blocks at once, which are no defaults; 5: two clusters
[ -z "$emu" ] || echo "release-tma_attention env 'TEST_ONLY=*_wgmma' build/tests/tma_attention" >>"$list"
[ -z "$emu" ] || echo "release-multicast_attention env EMU_PROCESSORS=5 'TEST_ONLY=*_wgmma' build/tests/multicast_attention" >>"$list"
[ -z "$emu" ] || echo "release-multicast_skip env TEST_ONLY=rules_as_written_wgmma build/tests/multicast_skip" >>"$list"
if [ "${1:-}" != quick ]; then
    add scalar attention pipeline kmeans skip select tiles front mass score dtype dispatch
    [ "$tools" = tool ] || echo "asan-wan-tool env ASAN_OPTIONS=detect_leaks=0 build/asan/tests/test_wan_tool build/asan/wan build/asan/svg2" >>"$list"
    echo "asan-tool env ASAN_OPTIONS=detect_leaks=0 build/asan/tests/test_tool build/asan/svg2" >>"$list" # a tool ends
    echo "fuzz tests/fuzz.sh 20" >>"$list"
fi
echo "header tests/test_header.sh" >>"$list"
echo "release-tool build/tests/test_tool build/svg2" >>"$list"
[ -z "$emu" ] || echo "release-tool-cuda tests/test_tool_cuda.sh" >>"$list"
[ "$tools" = tool ] || echo "release-wan-tool build/tests/test_wan_tool build/wan build/svg2" >>"$list"
add release $rest

# One program: its log, its exit code, its numbers.
cat >"$logs/one.sh" <<'ONE'
name=$1; shift
log=build/test-logs/$name.log
begin=$(date +%s)
ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    timeout 1500 "$@" >"$log" 2>&1 </dev/null
code=$?
passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p; s/^\([0-9]*\) passed, .*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
failed=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p; s/^[0-9]* passed, \([0-9]*\) failed.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
skipped=$(sed -n 's/^[0-9]* passed, [0-9]* failed, \([0-9]*\) skipped.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
if [ $code -ne 0 ] && [ "$failed" = 0 ]; then failed=1; fi # crashed, or out of time
echo "$passed $failed $skipped" >"build/test-logs/$name.count"
if [ "$failed" = 0 ]; then
    printf '  ok      %-20s %4d passed  %4ds\n' "$name" "$passed" "$(($(date +%s) - begin))"
    grep '^skipped' "$log"
else
    printf '  FAILED  %-20s %4d failed, exit code %d, %s\n' "$name" "$failed" "$code" "$log"
    grep -E 'ERROR|LINE|error|expected|FAILED|warning|Sanitizer|^fail' "$log" | head -n 30 | sed 's/^/          /'
fi
exit 0
ONE
echo "running ($(($(date +%s) - started)) s for the builds)"
xargs -P "$jobs" -L 1 sh "$logs/one.sh" <"$list"
if [ -n "$emu" ] && [ "${1:-}" != quick ]; then # two at a time by itself
    sh "$logs/one.sh" faults tests/emu/faults.sh
    echo "faults tests/emu/faults.sh" >>"$list"
fi

if [ -f "$logs/broken" ]; then
    echo "  FAILED  build: errors or warnings with config $(sort -u "$logs/broken" | tr '\n' ' ')"
    echo "0 1 0" >"$logs/build.count"
fi
want=$(wc -l <"$list")
got=$(find "$logs" -name '*.count' ! -name build.count | wc -l)
[ "$want" = "$got" ] || echo "0 $((want - got)) 0" >"$logs/missing.count"
echo "$want programs in $(($(date +%s) - started)) s"
cat "$logs"/*.count | awk '{p += $1; f += $2; s += $3} END {
    if (s) printf "%d passed, %d failed, %d skipped\n", p, f, s; else printf "%d passed, %d failed\n", p, f
    exit f > 0 || p == 0 }'
