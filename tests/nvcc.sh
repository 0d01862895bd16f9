#!/bin/sh
# What nvcc says of svg2_cuda.cu, where there is an nvcc (no GPU is needed): no warning, no spills, nothing exported but
# svg2_cuda_*, and the PTX of every device operation as it is written down in tests/ptx_golden.txt;
# wgmma in the kernels that are for it. And that what bench/gpu.sh builds beside it compiles.
#   tests/nvcc.sh          all checks
#   tests/nvcc.sh golden   writes the PTX of the device operations as it is now, for tests/ptx_golden.txt
cd "$(dirname "$0")/.." || exit 1
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
# Code for sm_90 has what sm_80 has: it differs from sm_90a only in what SVG2__SM90A leaves out.
ARCHS=${ARCHS:-80 90a}
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

# Code depends on the architecture by SVG2__SM90A alone: sm_80 and sm_90a stand for all others.
check "one condition on the architecture" sh -c "
    ! grep -n '__CUDA_ARCH' svg2_cuda.cu | grep -v 'defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)'"

# ---- the file ----
# Of every kernel of a cubin how many instructions are mma.sync, wgmma, a trap. An instruction has 16 bytes, its operation is in
# the lowest 12 bits.
tensor_code() {
    readelf -SW "$1" 2>/dev/null | sed -n 's/^ *\[ *[0-9]*\] *\.text\.//p' | awk '{printf "%16s %16s %s\n", $4, $5, $1}' | sort >$dir/sections
    test -s $dir/sections || return 1
    od -An -v -tx2 -w16 "$1" | awk '
        function number(hex,   n, i) {
            for (i = 1; i <= length(hex); ++i) n = 16 * n + index("0123456789abcdef", substr(hex, i, 1)) - 1
            return n
        }
        function show() { print name[at], mma + 0, wgmma + 0, trap + 0; mma = wgmma = trap = 0; ++at }
        FILENAME != "-" { begin[++n] = number($1); end[n] = begin[n] + number($2); name[n] = $3; next }
        { place = (line++) * 16; if (at == 0) at = 1; if (at <= n && place >= end[at]) show() }
        at <= n && place >= begin[at] {
            op = substr($1, 2)
            if (op == "23c") ++mma
            else if (op == "9f0" || op == "df0") ++wgmma
            else if (op == "95c") ++trap
        }
        END { while (at <= n) show() }' $dir/sections - | sort
}
# of all children when $dir/times was written
user_seconds() { sed -n '2s/^\([0-9]*\)m\([0-9]*\)[.,].*/\1 \2/p' $dir/times | awk '{print $1 * 60 + $2}'; }
for arch in $ARCHS; do
    log=$dir/sm_$arch.log
    mkdir -p $dir/keep
    rm -f $dir/keep/*
    times >$dir/times # not in a pipe: that would be a shell with other children
    before=$(user_seconds)
    "$NVCC" -std=c++17 -O3 -I. -gencode arch=compute_"$arch",code=sm_"$arch" -Xcompiler -Wall,-Wextra -Werror all-warnings \
        -Xptxas -v --keep --keep-dir $dir/keep -c svg2_cuda.cu -o $dir/sm_"$arch".o >$log 2>&1
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
    tensor_code $dir/keep/*.cubin >$dir/tensor_"$arch"
    check "sm_$arch: kernels in the machine code" awk '{mma += $2; n += $2 + $3 > 0} END {exit mma == 0 || n == NR}' $dir/tensor_"$arch"
    rm -rf $dir/keep
    check "sm_$arch: only svg2_cuda_* is exported" sh -c "
        nm -g --defined-only $dir/sm_$arch.o | awk '\$2 != \"V\" {print \$3}' | sort >$dir/exported
        test -s $dir/exported && ! grep -v '^svg2_cuda_[a-z]' $dir/exported"
done
# attention_hopper with switches that are no defaults: its section alone as far as that kernel goes, and a list of what of it
# is in the file above (of f16 it differs in the type of its products alone).
if [ -s $dir/kernels_90a ]; then
    {
        awk '/^\/\* ==== >>kmeans =/ {is_off = 1} /^\/\* ==== >>attention =/ {is_off = 0} /^\/\* ---- merging ----/ {exit} !is_off' svg2_cuda.cu
        echo 'const void *const svg2_cuda_used[] = {'
        sed -n 's/.*\(attention_hopper<__nv_bfloat16.*, *\)false>/(const void *)\1true>,/p' $dir/kernels_90a # the last: TMA
        echo '}; }'
        echo 'const void *const *svg2_cuda_all() { return svg2__cuda::svg2_cuda_used; }'
    } >$dir/attention.cu
    for switches in "-DSVG2_CUDA_TMA=1" "-DSVG2_CUDA_TMA=1 -DSVG2_CUDA_MULTICAST=1"; do
        log=$dir/attention.log
        check "sm_90a $switches: compiles" sh -c "'$NVCC' -std=c++17 -O3 -I. -gencode arch=compute_90a,code=sm_90a $switches \
            -Xcompiler -Wall,-Wextra,-Wno-unused-function -diag-suppress 177 -Werror all-warnings -Xptxas -v \
            -c $dir/attention.cu -o $dir/attention.o >$log 2>&1 || { cat $log; exit 1; }"
        check "sm_90a $switches: no warning" sh -c "! grep -niE 'warning|C75[0-9][0-9]' $log"
        check "sm_90a $switches: no spills, no stack" awk '
            /Function properties for/ {n += /attention_hopper/}
            /bytes stack frame/ && ($1 || $5 || $9) {print; bad = 1}
            END {exit bad || !n}' $log
    done
fi
# Kernels for wgmma are a trap in code for anything but sm_90a, where they have it; no other kernel has.
if [ -s $dir/tensor_80 ] && [ -s $dir/tensor_90a ]; then
    awk '{print $1, ($4 > 0)}' $dir/tensor_80 >$dir/want
    awk '{print $1, ($3 > 0)}' $dir/tensor_90a >$dir/got
    check "wgmma in sm_90a where sm_80 traps, and nowhere else" sh -c "test -s $dir/got && diff $dir/want $dir/got"
    sed '/==== >>ptx =/,/==== >>common =/d' svg2_cuda.cu | grep -c 'svg2__wgmma_[rs]s<' >$dir/uses
    check "kernels for wgmma, if the source has them" sh -c "
        [ \$(cat $dir/uses) = 0 ] && ! grep -q ' 1\$' $dir/got || [ \$(cat $dir/uses) -gt 0 ] && grep -q ' 1\$' $dir/got"
    awk '$3 {print $3, $1}' $dir/tensor_90a | c++filt | sed 's/svg2__cuda:://g; s/(.*//; s/void //' | sort -k2 |
        awk '{n = $1; $1 = ""; printf "  %-58s %4d wgmma\n", substr($0, 2), n}'
fi
# ---- what bench/gpu.sh builds beside it ----
cp $dir/ptx.h $dir/ops.inc
for source in bench/bench_cuda.cu tests/gpu/ops.cu tests/gpu/probe.cu tests/device.cc; do
    check "$source compiles" "$NVCC" -std=c++17 -gencode arch=compute_80,code=sm_80 \
        -gencode arch=compute_90a,code=sm_90a -I. -I$dir -Xcompiler -Wall,-Wno-unused-function \
        -Werror all-warnings -x cu -c "$source" -o $dir/program.o
done
for source in tests/test_cuda_*.c bench/compare/shim_cuda.c; do
    check "$source compiles with the small cmocka" "${CC:-gcc}" -std=c99 -Wall -Wextra -Werror -Itests/gpu/lite -fsyntax-only "$source"
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
