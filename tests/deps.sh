#!/bin/sh
# What the build can use, and a way to get it.
#
#   tests/deps.sh install             libpng, giflib, cJSON and cmocka by apt-get if one of them is absent and this is root;
#                                     clang and libFuzzer too where they come along (optional)
#   tests/deps.sh tool-flags          compiler and linker flags of examples/svg2.c for what is there
#   tests/deps.sh wan-flags           the same of examples/wan/wan.c
#   tests/deps.sh has HEADER          exit code only
cc=${CC:-cc}
has() { printf '#include <stddef.h>\n#include <stdarg.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <%s>\n' "$1" | $cc -E - >/dev/null 2>&1; }

case ${1:-} in
has) has "$2" ;;
tool-flags)
    if has png.h; then flags="-lpng"; else flags="-DSVG2_TOOL_NO_PNG"; fi
    if has cjson/cJSON.h; then flags="$flags -lcjson"; else flags="$flags -DSVG2_TOOL_NO_CJSON"; fi
    echo "$flags"
    ;;
wan-flags)
    flags=$("$0" tool-flags)
    if has gif_lib.h; then flags="$flags -lgif"; else flags="$flags -DSVG2_TOOL_NO_GIF"; fi
    echo "$flags"
    ;;
install)
    missing=
    has png.h || missing="$missing libpng-dev"
    has gif_lib.h || missing="$missing libgif-dev"
    has cjson/cJSON.h || missing="$missing libcjson-dev"
    has cmocka.h || missing="$missing libcmocka-dev"
    [ -n "$missing" ] || exit 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing$missing clang libfuzzer-14-dev libclang-rt-14-dev"
        export DEBIAN_FRONTEND=noninteractive
        get() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1; }
        # shellcheck disable=SC2086
        get $missing || { apt-get update -qq >/dev/null 2>&1; get $missing; } || echo "apt-get cannot install$missing"
        command -v clang >/dev/null || get clang libfuzzer-14-dev libclang-rt-14-dev || true # optional
    fi
    has png.h || echo "no libpng (Debian: libpng-dev): build/svg2 is built without --picture, build/wan without sheet.png"
    has gif_lib.h || echo "no giflib (Debian: libgif-dev): build/wan is built without clips.gif"
    has cjson/cJSON.h || echo "no cJSON (Debian: libcjson-dev): build/svg2 is built without --report and .safetensors input, build/wan cannot read models"
    has cmocka.h || echo "no cmocka (Debian: libcmocka-dev): the tests cannot be built"
    exit 0
    ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
