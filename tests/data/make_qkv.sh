#!/bin/sh
# Makes wan_qkv_*.safetensors from the shipped model: run in the root of the repository, after make.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
build/wan dense --frames 6 --prompt "red striped disc; blue dotted square; grey waves pan-left" --out none \
    --dump-qkv "$dir" --dump-layers 1,4 --dump-steps 12 --dump-dtype bf16
cp "$dir/step12-layer01.safetensors" tests/data/wan_qkv_early.safetensors
cp "$dir/step12-layer04.safetensors" tests/data/wan_qkv_late.safetensors
