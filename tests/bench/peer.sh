#!/usr/bin/env bash
# The same model files through racklm and through its peers, in one run, with the same threads: what issue "CPU workers at the machine's limit" asks for, as a table of
# ratios. Peers: llama-bench, llama-batched-bench and llama-server on PATH (ik_llama.cpp or llama.cpp), openvino-genai in the python3 on PATH. One that is not there makes its
# rows "not measured". Asserts nothing. Random models are made in a temporary folder (about 8 GB; MODELS=DIR keeps them).
#
#   tests/bench/peer.sh [BUILD_DIR] [OPTIONS] [ROW ...]     (python3 tests/bench/peer.py --help tells both; default: all rows)
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
build=$top/build
if [ $# -gt 0 ] && [ -d "$1" ]; then
    build=$(cd "$1" && pwd)
    shift
fi
if [ -n "${MODELS:-}" ]; then
    mkdir -p "$MODELS"
    dir=$(cd "$MODELS" && pwd)
else
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
fi
python3 "$top/tests/bench/peer.py" --build "$build" --models "$dir" "$@"
