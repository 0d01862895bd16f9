#!/bin/sh
# libFuzzer over both harnesses, so many seconds each; where clang or libFuzzer is absent the seeds and random changes of
# them, under gcc's sanitizers.
seconds=${1:-20}
cd "$(dirname "$0")/.." || exit 1
dir=build/fuzz
mkdir -p $dir
passed=0; failed=0; skipped=0
result() { # name, code
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "fail $1"; fi
}
cjson="-lcjson"
CC=${CC:-gcc} tests/deps.sh has cjson/cJSON.h || cjson="-DTF_NO_CJSON"
libfuzzer=
if command -v clang >/dev/null; then
    echo 'int LLVMFuzzerTestOneInput(const char *p, unsigned long n); int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return p && n > 9999999; }' >$dir/probe.c
    clang -fsanitize=fuzzer,address,undefined $dir/probe.c -o $dir/probe 2>/dev/null && libfuzzer=1
fi
for h in file desc; do
    if [ -f examples/tensor_file.h ] || [ $h = desc ]; then :; else continue; fi
    replay=build/asan/tests/fuzz_$h
    [ -x $replay ] || ${MAKE:-make} -s config=asan $replay || { result "build $h" 1; continue; }
    if [ -n "$libfuzzer" ]; then
        mkdir -p $dir/$h $dir/$h-found
        $replay --write-seeds $dir/$h
        [ $h = file ] && libs=$cjson || libs=
        # shellcheck disable=SC2086
        [ $dir/fuzz_$h -nt svg2.h ] && [ $dir/fuzz_$h -nt tests/fuzz_$h.c ] && [ $dir/fuzz_$h -nt examples/tensor_file.h ] ||
            clang -std=c99 -O1 -g -ffp-contract=off -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DSVG2_DEBUG_WORKSPACE \
                '-DSVG2_ASSERT(x)=((x) ? (void)0 : __builtin_trap())' tests/fuzz_$h.c $libs -lm -o $dir/fuzz_$h || { result "build $h" 1; continue; }
        $dir/fuzz_$h -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=1024 -verbosity=1 \
            -artifact_prefix=$dir/$h-found/ $dir/$h >$dir/$h.log 2>&1
        code=$?
        result "libfuzzer $h" $code
        [ $code = 0 ] && sed -n 's/^Done /libfuzzer '$h': /p' $dir/$h.log || tail -n 40 $dir/$h.log
    else
        [ $skipped = 0 ] && echo "skipped: libFuzzer (needs clang, Debian: clang libfuzzer-14-dev libclang-rt-14-dev); replaying seeds instead"
        skipped=1
        $replay "$((seconds / 2))"
        result "replay $h" $?
    fi
done
echo "$passed passed, $failed failed, $skipped skipped" | sed 's/, 0 skipped//'
[ $failed = 0 ]
