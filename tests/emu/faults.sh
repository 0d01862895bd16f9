#!/bin/sh
# Every deliberate fault of svg2_cuda.cu (SVG2__FAULT(number)) has to be seen: the test that tests/emu/faults.txt names
# for it must fail in the build named there, under one of a few orders of threads and times of copies. Needs programs.
#   tests/emu/faults.sh [number...]
#   tests/emu/faults.sh find number   which tests of which build see it (release, asan, tsan as far as they are built)
cd "$(dirname "$0")/../.." || exit 1
dir=build/faults
mkdir -p $dir
dir_of() { [ "$1" = release ] && echo build || echo "build/$1"; }
export TSAN_OPTIONS=halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0

evidence='cuda_emu:|WARNING: Thread|ERROR: Addr|runtime error|error:'
export evidence

if [ "${1:-}" = find ]; then
    tag=$(awk -v n="$2" '/^\/\* ==== >>/ {sub(/.*>>/, ""); tag = $1}
        index($0, "SVG2__FAULT(" n ")") {print tag; exit}' svg2_cuda.cu)
    for config in release asan tsan; do
        for program in $tag backend; do
            p=$(dir_of $config)/tests/test_cuda_$program
            [ -x "$p" ] || continue
            for test in $(env TEST_ONLY='*' "$p" 2>/dev/null | sed -n 's/^\[ RUN      \] //p'); do
                SVG2_FAULT=$2 TEST_ONLY=$test timeout 300 "$p" >$dir/find.log 2>&1 ||
                    echo "$config $program $test: $(grep -m 1 -hE "$evidence" $dir/find.log)"
            done
        done
    done
    exit 0
fi

# One fault: seen, or not.
cat >$dir/one.sh <<'ONE'
number=$1; config=$2; program=$3; test=$4
case $program in *_attention) name=$program ;; *) name=test_cuda_$program ;; esac # or one with other switches
[ "$config" = release ] && p=build/tests/$name || p=build/$config/tests/$name
log=build/faults/$number.log
for schedule in "rr late 1" "first early 2" "last mixed 3" "random late 4" "random mixed 5"; do
    SVG2_FAULT=$number TEST_ONLY=$test EMU_SCHEDULE=$schedule timeout 300 "$p" >"$log" 2>&1
    code=$?
    if grep -q 'Running 0 test' "$log" || [ $code = 127 ] || [ $code = 126 ]; then
        echo "fail: fault $number: there is no test $test in $p"
        exit 0
    fi
    if [ $code = 124 ]; then
        echo "fail: fault $number: $test of $p does not end, see $log"
        exit 0
    fi
    if [ $code != 0 ]; then
        echo "seen: $number $config $program $test ($schedule): $(grep -m 1 -hE "$evidence" "$log" | cut -c1-140)"
        exit 0
    fi
done
echo "fail: fault $number is not seen by $test of $p"
ONE

# columns: number tag config program test description
wanted=" $* "
grep -vE '^ *(#|$)' tests/emu/faults.txt | while read -r number _ config program test _; do
    case $wanted in "  " | *" $number "*) echo "$number $config $program $test" ;; esac
done >$dir/list
xargs -P 2 -L 1 sh $dir/one.sh <$dir/list >$dir/result
sort -t' ' -k3n $dir/result
passed=$(grep -c '^seen' $dir/result)
failed=$(grep -c '^fail' $dir/result)
if [ "$wanted" = "  " ]; then # a fault that nobody looks for is none
    grep -oE 'SVG2__FAULT\([0-9]+' svg2_cuda.cu | sed 's/.*(//' | sort -un >$dir/planted
    awk '!/^ *(#|$)/ {print $1}' tests/emu/faults.txt | sort -n >$dir/listed
    if diff $dir/planted $dir/listed >$dir/log; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "fail: faults of svg2_cuda.cu (<) and of tests/emu/faults.txt (>), each once:"
        cat $dir/log
    fi
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
