#!/usr/bin/env bash
# Four processes on two cores: generation speed of tp 2 x pp 2 against tp 1, on a random model of a 0.5B shape. Nobody may spin on a core that
# another needs, so that half of tp 1's speed is left at least. Prints, asserts nothing. Usage: tests/bench/oversubscribe.sh [BUILD_DIR] [TOKENS]
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$top/build}
tokens=${2:-64}
dir=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
mkmodel=$(find "$build" -name mkmodel -type f -perm -u+x | head -n 1)
[ -n "$mkmodel" ] || { echo "no mkmodel in $build: build the target mkmodel" >&2; exit 2; }
"$mkmodel" qwen2.5-0.5b Q8_0 "$dir/model.gguf" >/dev/null
cpus=$(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | awk -F- '{ for (i = $1; i <= (NF > 1 ? $2 : $1); i++) print i }' | head -n 2 | paste -sd,)

speed() { # SPLIT_FLAGS...: tokens a second of the best of three requests
    : >"$dir/out"
    RACKLM_STATE_DIR=$dir/state RACKLM_RUNTIME_DIR=$dir/run taskset -c "$cpus" \
        "$build/bin/racklm" serve "$dir/model.gguf" --port 0 --ctx 512 --max-seqs 2 "$@" >"$dir/out" 2>"$dir/log" &
    server=$!
    until grep -q ' at http' "$dir/out"; do
        kill -0 "$server" || { cat "$dir/log" >&2; exit 1; }
        sleep 0.1
    done
    url=$(sed -n 's/.* at \(http[^ ]*\).*/\1/p' "$dir/out")
    for _ in 1 2 3; do
        curl -s "$url/v1/completions" -d "{\"prompt\":[5,6,7,8],\"max_tokens\":$tokens,\"ignore_eos\":true,\"temperature\":0}" |
            sed -n 's/.*"predicted_n":\([0-9]*\),"predicted_ms":\([0-9.]*\).*/\1 \2/p'
    done | awk '{ s = ($1 - 1) * 1000 / $2; if (s > best) best = s } END { printf "%.2f\n", best }'
    kill "$server"
    wait "$server" || true
    server=
}

one=$(speed --threads 1)
two=$(speed --threads 2)
tp2=$(speed --tp 2 --threads 1)
four=$(speed --tp 2 --pp 2 --threads 1)
echo "cores $cpus, tokens/s: tp 1 with 1 thread $one, with 2 threads $two; tp 2 $tp2; tp 2 x pp 2 (four processes) $four"
awk -v a="$two" -v b="$four" 'BEGIN { printf "tp 2 x pp 2 reaches %.0f%% of tp 1 with 2 threads\n", 100 * b / a }'
