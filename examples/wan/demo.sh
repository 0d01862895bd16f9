#!/bin/sh
# make demo: a clip generated with dense and with sparse attention, from the same noise.
#   examples/wan/demo.sh BUILD/wan BUILD/svg2
set -eu
wan=$1; svg2=$2; out=out
if ! CC=${CC:-cc} tests/deps.sh has cjson/cJSON.h; then
    echo "make demo needs cJSON, to read the model (Debian: libcjson-dev)"
    exit 1
fi
"$wan" dense svg2,dense-steps=4 plain:svg2,tail=0,top-p=0.7,dense-steps=4,dense-layers=1 \
    --prompt "red striped disc; blue dotted square; grey waves pan-left" --out $out --dump-qkv $out/qkv --dump-layers 3 --dump-steps 12
echo "One of its attention calls (layer 3, step 12), with the exact attention mass of every block:"
qkv=$out/qkv/step12-layer03.safetensors
picture=; if CC=${CC:-cc} tests/deps.sh has png.h; then picture="--picture $out/map.png"; fi
# shellcheck disable=SC2086
"$svg2" attend --q $qkv:q --k $qkv:k --v $qkv:v --repeat 2 --check $picture
echo
echo "Look at $out/clips.gif and $out/sheet.png (dense beside sparse), $out/dense.y4m and $out/svg2.y4m (for a player)"
echo "and $out/map.png (what was computed); numbers are in $out/report.json."
