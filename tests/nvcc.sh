#!/bin/sh
# What nvcc says of svg2_cuda.cu, where there is an nvcc (no GPU is needed): no warning, no spills, nothing exported but
# svg2_cuda_*, a bearable compile time, and the PTX of every device operation as it is written down in tests/ptx_golden.txt.
# And that what bench/gpu.sh builds beside it compiles.
#   tests/nvcc.sh          all checks
#   tests/nvcc.sh golden   writes the PTX of the device operations as it is now, for tests/ptx_golden.txt
cd "$(dirname "$0")/.." || exit 1
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
ARCHS=${ARCHS:-80 90}
SECONDS_MAX=100 # of user time of one architecture: a minute on two cores by nvcc --split-compile=0
if ! "$NVCC" --version >/dev/null 2>&1; then
    echo "skipped: nvcc not found, so svg2_cuda.cu is not compiled for a GPU"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
dir=build/nvcc
mkdir -p $dir
passed=0; failed=0
good() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "fail: $1"; }
check() { # name, command
    name=$1; shift
    if "$@" >$dir/log 2>&1; then good; else bad "$name"; head -n 20 $dir/log; fi
}

# ---- device operations ----
# The section >>ptx alone, and a kernel for each function of it (tests/ptx_probe.cu), as PTX. In the result registers have the
# names of what was loaded into them or is stored from them, so that it depends neither on the compiler's numbers nor on its
# order, and an operand in another's place shows.
sed -n '/^\/\* ==== >>ptx =/,/^\/\* ==== >>common =/p' svg2_cuda.cu | sed '$d' >$dir/ptx.h
ptx_of_operations() {
    "$NVCC" -std=c++17 -O3 -arch=compute_90a -I$dir -ptx tests/ptx_probe.cu -o $dir/probe.ptx || return 1
    awk '
        function flush_kernel(   i, n, line, text, reg) {
            if (kernel == "") return
            print "[" kernel "]"
            for (i = 1; i <= lines; ++i) {
                line = asm_line[i]; text = ""
                while (match(line, /%[a-z]+[0-9]+/)) {
                    reg = substr(line, RSTART, RLENGTH)
                    text = text substr(line, 1, RSTART - 1) (reg in name ? name[reg] : "?")
                    line = substr(line, RSTART + RLENGTH)
                }
                print text line
            }
            kernel = ""; lines = 0; split("", name)
        }
        function memory(operand,   base, offset) { # [%rd1+8] -> in[8]
            gsub(/[][]/, "", operand)
            split(operand, part, "+")
            return (part[1] in name ? name[part[1]] : "?") "[" (part[2] == "" ? 0 : part[2]) "]"
        }
        { gsub(/[;,]+$/, "") }
        /\.entry probe_/ { flush_kernel(); kernel = $0; sub(/.*\.entry probe_/, "", kernel); sub(/\(.*/, "", kernel); next }
        /begin inline asm/ { on = 1; next }
        /end inline asm/ { on = 0; next }
        on { sub(/^[ \t]+/, ""); if ($0 != "") asm_line[++lines] = $0; next }
        { gsub(/,/, " "); $0 = $0 }
        $1 ~ /^ld\.param/ {
            n = $3; gsub(/[][]/, "", n); sub(/.*_param_/, "", n)
            name[$2] = n == 0 ? "out" : n == 1 ? "in" : "p" n
        }
        $1 ~ /^cvta/ { name[$2] = name[$3] }
        $1 ~ /^ld\.global/ { name[$2] = memory($3) }
        $1 ~ /^st\.global/ && !($3 in name) { name[$3] = memory($2) }
        END { flush_kernel() }' $dir/probe.ptx
}
if [ "${1:-}" = golden ]; then ptx_of_operations; exit; fi
check "the device operations compile" sh -c "'$NVCC' -std=c++17 -arch=compute_90a -I$dir -ptx tests/ptx_probe.cu -o $dir/probe.ptx"
ptx_of_operations >$dir/ptx.txt 2>/dev/null
check "the PTX of the device operations is that of tests/ptx_golden.txt" diff tests/ptx_golden.txt $dir/ptx.txt
check "every operand of it is known" sh -c "test -s $dir/ptx.txt && ! grep -n '?' $dir/ptx.txt"
sed -n 's/^\(template <[^>]*> *\)\{0,1\}SVG2__OP .*[ *]\(svg2__[a-z0-9_]*\)(.*/\2/p' $dir/ptx.h | sort >$dir/operations
check "every device operation has a probe" sh -c "
    test -s $dir/operations
    for f in \$(sort -u $dir/operations); do
        [ \$(grep -c \"^\$f\\\$\" $dir/operations) = \$(grep -c \"[ =]\$f[<(]\" tests/ptx_probe.cu) ] || { echo \$f; missing=1; }
    done
    [ -z \"\$missing\" ]"
# The compiler must not move what goes through memory; PTX does not show whether it may.
check "operations on memory are volatile and clobber it" sh -c "
    tr '\n' ' ' <$dir/ptx.h | sed 's/asm\( volatile\)* *(/\n&/g' | sed -n '/^asm/s/);.*/);/p' >$dir/asm
    grep -E 'cp\.async|matrix|barrier|bar\.|fence|wgmma|setmaxnreg' $dir/asm >$dir/asm_memory
    test -s $dir/asm_memory && ! grep -v 'asm volatile.*memory' $dir/asm_memory"

# ---- the file ----
# of all children when $dir/times was written
user_seconds() { sed -n '2s/^\([0-9]*\)m\([0-9]*\)[.,].*/\1 \2/p' $dir/times | awk '{print $1 * 60 + $2}'; }
for arch in $ARCHS; do
    log=$dir/sm_$arch.log
    times >$dir/times # not in a pipe: that would be a shell with other children
    before=$(user_seconds)
    "$NVCC" -std=c++17 -O3 -I. -gencode arch=compute_"$arch",code=sm_"$arch" -Xcompiler -Wall,-Wextra -Werror all-warnings \
        -Xptxas -v -c svg2_cuda.cu -o $dir/sm_"$arch".o >$log 2>&1
    code=$?
    times >$dir/times
    spent=$(($(user_seconds) - before))
    if [ $code = 0 ]; then good; else bad "sm_$arch: compilation"; grep -vE 'ptxas info|bytes stack frame' $log | head -n 20; continue; fi
    check "sm_$arch: no warning" sh -c "! grep -niE 'warning|C75[0-9][0-9]' $log"
    # Attention under a skip rule (attention_forward<.., true>) has 255 registers and spills a few once a tile, beside some
    # 1,600 cycles of products; nothing else may spill.
    check "sm_$arch: no spills, no stack" awk '
        /Function properties for/ {name = $0}
        /bytes stack frame/ {
            most = name ~ /attention_forward<.*true>|attention_forward.*Lb1E/ ? 160 : 0
            if ($1 > most || $5 > most || $9 > most) {print name; print; bad = 1}
        }
        END {exit bad}' $log
    echo "sm_$arch: $spent s of user time; kernel, registers, static shared memory"
    awk '/Compiling entry function/ {split($0, q, "\x27"); name = q[2]}
         /Used [0-9]+ registers/ {
             smem = "0"; if (match($0, /[0-9]+ bytes smem/)) smem = substr($0, RSTART, RLENGTH - 11)
             match($0, /Used [0-9]+/); print substr($0, RSTART + 5, RLENGTH - 5), smem, name}' $log | c++filt |
        sed 's/svg2__cuda:://g; s/(.*//; s/void //' | sort -k3 >$dir/kernels_"$arch"
    awk '{r = $1; m = $2; $1 = $2 = ""; sub(/^ +/, ""); printf "  %-58s %4d %6d\n", $0, r, m}' $dir/kernels_"$arch"
    check "sm_$arch: kernels are there" test -s $dir/kernels_"$arch"
    check "sm_$arch: compiles in $SECONDS_MAX s ($spent s)" test "$spent" -le $SECONDS_MAX
    check "sm_$arch: only svg2_cuda_* is exported" sh -c "
        nm -g --defined-only $dir/sm_$arch.o | awk '\$2 != \"V\" {print \$3}' | sort >$dir/exported
        test -s $dir/exported && ! grep -v '^svg2_cuda_[a-z]' $dir/exported"
done
# ---- what bench/gpu.sh builds beside it ----
cp $dir/ptx.h $dir/ops.inc
for source in bench/bench_cuda.cu tests/gpu/ops.cu tests/gpu/probe.cu tests/device.cc; do
    check "$source compiles" "$NVCC" -std=c++17 -arch=sm_80 -I. -I$dir -Xcompiler -Wall,-Wno-unused-function \
        -Werror all-warnings -x cu -c "$source" -o $dir/program.o
done
for source in tests/test_cuda_*.c bench/compare/shim_cuda.c; do
    check "$source compiles with the small cmocka" "${CC:-gcc}" -std=c99 -Wall -Wextra -Werror -Itests/gpu/lite -fsyntax-only "$source"
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
