#!/bin/sh
# Header hygiene: every dialect without a warning, double include, two units, static, scalar; only svg2_* is exported; the
# table of contents is the banners; nothing that the header promises not to do.
cd "$(dirname "$0")/.." || exit 1
dir=build/header
rm -rf $dir
mkdir -p $dir
strict="-O1 -ffp-contract=off -Wall -Wextra -pedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wundef -Werror"
passed=0; failed=0; skipped=0
check() { # name, command
    name=$1; shift
    if "$@" >$dir/log 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1)); echo "fail: $name"; head -n 20 $dir/log; fi
}
skip() { skipped=$((skipped + 1)); echo "skipped: $1"; }

# sources
printf '#define SVG2_IMPLEMENTATION\n#include "svg2.h"\n#include "svg2.h"\n' >$dir/impl.c          # twice, macro still set
printf '#include "svg2.h"\n#include "svg2.h"\nextern size_t other(void);\nsize_t other(void) { svg2_desc d = SVG2_ZERO; d.heads = 1; return svg2_state_bytes(&d); }\n' >$dir/other.c
printf '#include "svg2.h"\nextern size_t other(void);\nint main(void) { svg2_desc d = SVG2_ZERO; return svg2_resolve(&d, 0) == SVG2_OK || other() == 0; }\n' >$dir/main.c
printf '#define SVG2_STATIC\n#define SVG2_IMPLEMENTATION\n#include "svg2.h"\nint main(void) { svg2_desc d = SVG2_ZERO; return svg2_resolve(&d, 0) == SVG2_OK; }\n' >$dir/static.c
printf '#define SVG2_OPENMP\n#define SVG2_IMPLEMENTATION\n#include "svg2.h"\n' >$dir/openmp.c
printf '#include <assert.h>\n#define SVG2_ASSERT(x) assert(x)\n#define SVG2_NO_SIMD\n#define SVG2_IMPLEMENTATION\n#include "svg2.h"\n' >$dir/scalar.c
# the header stands alone: any standard header may come before or after it, or none
printf '#include "svg2.h"\ntypedef int not_empty;\n' >$dir/alone.c
for f in impl other main static openmp scalar alone; do cp $dir/$f.c $dir/$f.cpp; done

compile_all() { # compiler, language, extension, standards
    cc=$1; lang=$2; ext=$3; shift 3
    command -v "$cc" >/dev/null || { skip "$cc: not installed"; return; }
    first=1
    for std in "$@"; do
        o=$dir/$cc-$std
        check "$cc -std=$std: implementation" "$cc" -x "$lang" "-std=$std" $strict -I. -c $dir/impl.$ext -o $o-impl.o
        check "$cc -std=$std: declarations" "$cc" -x "$lang" "-std=$std" $strict -I. -c $dir/alone.$ext -o $o-alone.o
        check "$cc -std=$std: second unit" "$cc" -x "$lang" "-std=$std" $strict -I. -c $dir/other.$ext -o $o-other.o
        check "$cc -std=$std: user" "$cc" -x "$lang" "-std=$std" $strict -I. -c $dir/main.$ext -o $o-main.o
        check "$cc -std=$std: two units link and run" sh -c "$cc $o-impl.o $o-other.o $o-main.o -lm -o $o-run && $o-run"
        [ $first = 1 ] || continue
        first=0
        check "$cc -std=$std: SVG2_NO_SIMD with SVG2_ASSERT" "$cc" -x "$lang" "-std=$std" $strict -I. -c $dir/scalar.$ext -o $o-scalar.o
        check "$cc -std=$std: SVG2_STATIC" sh -c "$cc -x $lang -std=$std $strict -Wno-unused-function -I. -c $dir/static.$ext -o $o-static.o && $cc $o-static.o -lm -o $o-static && $o-static"
        if echo 'int main(void) { return 0; }' | "$cc" -x "$lang" -fopenmp - -o $dir/probe 2>/dev/null; then
            check "$cc -std=$std: SVG2_OPENMP" "$cc" -x "$lang" "-std=$std" -fopenmp $strict -I. -c $dir/openmp.$ext -o $o-openmp.o
        else
            skip "$cc -fopenmp: not installed"
        fi
    done
}
compile_all gcc c c c99 c11
compile_all g++ c++ cpp c++11 c++17
compile_all clang c c c99 c11
compile_all clang++ c++ cpp c++11 c++17
command -v g++ >/dev/null && check "a C unit and a C++ unit link" sh -c "gcc $dir/gcc-c99-impl.o $dir/g++-c++11-other.o $dir/g++-c++11-main.o -lm -lstdc++ -o $dir/mixed && $dir/mixed"

# exported names: only svg2_*, and not svg2__*
check "only svg2_* is exported" sh -c "! nm -g --defined-only $dir/gcc-c99-impl.o | awk '{print \$3}' | grep -v '^svg2_[a-z]'"
command -v g++ >/dev/null && check "the same from C++" sh -c "! nm -g --defined-only $dir/g++-c++17-impl.o | awk '{print \$3}' | grep -v '^svg2_[a-z]'"
check "SVG2_STATIC exports only main" sh -c "! nm -g --defined-only $dir/gcc-c99-static.o | awk '{print \$3}' | grep -v '^main$'"
check "no mutable global (nothing in .data or .bss)" sh -c "gcc -std=c99 -O1 -fno-pie -I. -c $dir/impl.c -o $dir/nopie.o && ! nm $dir/nopie.o | grep -E ' [bBdDC] '"
check "no allocation, output, exit or environment" sh -c "! nm -u $dir/gcc-c99-impl.o | grep -wE 'malloc|calloc|realloc|free|printf|fprintf|puts|exit|abort|getenv|fopen|pthread_create|time|clock'"
# every function of the API is defined, and is declared once; those of svg2_cuda.cu are defined there
check "every declared function is defined" sh -c "
    sed -n '/^#ifndef SVG2_H_INCLUDED/,/^#endif.*SVG2_H_INCLUDED/p' svg2.h | tr '\n' ' ' | grep -oE 'SVG2_API [^;{]*\(' | grep -oE 'svg2_[a-z0-9_]+ *\(' | tr -d '( ' | sort -u >$dir/declared
    { nm -g --defined-only $dir/gcc-c99-openmp.o | awk '{print \$3}'; sed -n 's/^extern \"C\" svg2_[a-z]* \(svg2_cuda_[a-z_]*\)(.*/\1/p' svg2_cuda.cu; } | sort -u >$dir/defined
    diff $dir/declared $dir/defined"

# table of contents = banners, in the same order
check "table of contents = banners" sh -c "
    sed -n '/TABLE OF CONTENTS/,/^\*\//s/^ *>>\([a-z0-9_]*\) .*/\1/p' svg2.h >$dir/toc
    sed -n 's/^\/\* ==== >>\([a-z0-9_]*\) =.*/\1/p' svg2.h >$dir/banners
    test -s $dir/toc && diff $dir/toc $dir/banners"
check "no forbidden word" sh -c "! grep -nE '\b(malloc|calloc|realloc|free|printf|fprintf|exit|abort|getenv|rand|TODO|FIXME|XXX|HACK)\b *(\(|:|$)|\bTODO\b|\bFIXME\b' svg2.h"
check "no tab, no trailing space" sh -c "! grep -nE '	| \$' svg2.h"
check "version: header and CHANGELOG agree" sh -c "
    v=\$(sed -n 's/.*define SVG2_VERSION \([0-9]*\).*/\1/p' svg2.h); s=\$((v / 10000)).\$((v / 100 % 100))
    head -n 1 svg2.h | grep -q \"v\$s\" && grep -q \"^## \$s.\$((v % 100))\" CHANGELOG.md"

# the programs beside the library
if [ -f examples/svg2.c ]; then
    check "the tool without libpng and cJSON" gcc -std=c99 $strict -DSVG2_TOOL_NO_PNG -DSVG2_TOOL_NO_CJSON -I. -c examples/svg2.c -o $dir/tool.o
fi
if [ -f examples/minimal.c ]; then
    check "minimal.c runs" sh -c "gcc -std=c99 $strict -O2 -I. examples/minimal.c -lm -o $dir/minimal && $dir/minimal"
fi
if [ -f bench/bench.c ]; then
    check "bench.c compiles" gcc -std=c99 $strict -fopenmp -I. -c bench/bench.c -o $dir/bench.o
fi

# the README's first program is examples/minimal.c
if [ -f README.md ] && [ -f examples/minimal.c ]; then
    check "README shows examples/minimal.c" sh -c "awk '/^\`\`\`c\$/ && !done {on = 1; next} /^\`\`\`\$/ && on {on = 0; done = 1} on' README.md >$dir/readme.c
        sed '/^\/\* *examples\/minimal.c/d' examples/minimal.c | diff - $dir/readme.c || diff examples/minimal.c $dir/readme.c"
else
    skip "README.md: not there"
fi
echo "$passed passed, $failed failed, $skipped skipped" | sed 's/, 0 skipped//'
[ $failed = 0 ]
