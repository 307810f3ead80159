#!/bin/sh
# From a fresh checkout to an answer: installs what is missing, builds, serves the demo model with two CPU workers that hold half of every
# matrix each, asks one question, and keeps serving until Ctrl-C. `--once` ends after the answer. PORT chooses the port (default: a free one).
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
once=0
for arg in "$@"; do
    case "$arg" in
    --once) once=1 ;;
    -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    *) echo "usage: sh deploy/quickstart.sh [--once]" >&2; exit 2 ;;
    esac
done
. "$here/deploy/packages.sh"

step() { printf '\n== %s\n' "$1"; }

step "packages"
# shellcheck disable=SC2086
install_packages $PACKAGES_BUILD

step "build"
build="$here/build"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { cmake -S "$here" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DRACKLM_TESTS=OFF && ninja -C "$build" racklm racklm-coordinator racklm-worker; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "error: the build failed; the end of its output stands above" >&2
    exit 1
fi
echo "built build/bin/racklm, racklm-coordinator, racklm-worker"

step "serve deploy/demo/grimm-6m-Q8_0.gguf, tensor-parallel over two workers"
out=$(mktemp)
"$build/bin/racklm" serve "$here/deploy/demo/grimm-6m-Q8_0.gguf" --tp 2 --port "${PORT:-0}" >"$out" &
server=$!
stop() {
    trap - EXIT INT TERM
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    rm -f "$out" "$log"
}
trap stop EXIT
trap 'stop; exit 0' INT TERM
while ! grep -q ' at http' "$out" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { echo "error: the server did not start" >&2; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/.* at \(http[^ ]*\).*/\1/p' "$out" | head -n 1)
cat "$out"
"$build/bin/racklm" workers || true

step "ask: Tell me a tale about a fox."
"$build/bin/racklm" run --url "$url" --temperature 0.7 --top-p 0.95 --seed 7 --max-tokens 160 "Tell me a tale about a fox."

if [ "$once" = 1 ]; then
    exit 0
fi
step "yours now: $url"
cat <<TEXT
curl $url/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"messages":[{"role":"user","content":"Tell me a story about a king."}],"temperature":0.7}'

from openai import OpenAI
client = OpenAI(base_url="$url/v1", api_key="none")
print(client.chat.completions.create(model="default", messages=[{"role": "user", "content": "Tell me a story about a king."}]).choices[0].message.content)

Ctrl-C stops it.
TEXT
wait "$server"
