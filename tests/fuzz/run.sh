#!/usr/bin/env bash
# run.sh SECONDS BUILD_DIR [target...]: runs the libFuzzer targets (all by default), two at a time, each for SECONDS with
# its corpus and dictionary; new inputs go to a temporary directory, so that the committed corpus stays as it is. A crash, a
# leak, an input slower than 10 s, or a function of `reached` that no input reached is a failure. One line a target.
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 SECONDS BUILD_DIR [target...]" >&2
    exit 2
fi
seconds=$1 build=$(cd "$2" && pwd) || exit 2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -eq 0 ]; then
    for f in "$here"/*/target.cmake; do
        set -- "$@" "$(basename "$(dirname "$f")")"
    done
fi

if [ $# -gt 1 ]; then
    printf '%s\n' "$@" | xargs -P 2 -n 1 bash "$0" "$seconds" "$build"
    exit
fi

# Coverage is told by function names only when there is a symbolizer.
for s in llvm-symbolizer llvm-symbolizer-{21..14}; do
    if command -v "$s" >/dev/null; then
        ASAN_SYMBOLIZER_PATH=$(command -v "$s")
        export ASAN_SYMBOLIZER_PATH
        break
    fi
done
if [ -z "${ASAN_SYMBOLIZER_PATH:-}" ]; then
    echo "llvm-symbolizer is missing: install llvm" >&2
    exit 2
fi
export ASAN_OPTIONS=abort_on_error=0:detect_leaks=1:allocator_may_return_null=1:detect_stack_use_after_return=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
failed=0

# The functions of `reached` that the final coverage report does not name as covered.
missing_functions() {
    sed -n 's/^COVERED_FUNC: .* edges: [0-9/]* \([^ ]*\) .*/\1/p' "$2" | sort -u >"$tmp/covered"
    sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1" | sort -u | comm -23 - "$tmp/covered" | tr '\n' ' '
}

for t in "$@"; do
    bin=$build/fuzz/fuzz_$t dir=$here/$t log=$tmp/$t.log cov=$tmp/$t.cov new=$tmp/$t.new
    if [ ! -x "$bin" ] || [ ! -d "$dir/corpus" ] || [ ! -f "$dir/reached" ]; then
        echo "FAIL fuzz $t: needs $bin, corpus/ and reached"
        failed=1
        continue
    fi
    mkdir -p "$new"
    dict=()
    if [ -f "$dir/dict" ]; then
        dict=("-dict=$dir/dict")
    fi
    if ! "$bin" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$tmp/$t." "${dict[@]}" "$new" "$dir/corpus" >"$log" 2>&1; then
        cp "$log" "$build/fuzz/$t.log"
        artifact=$(sed -n "s/.*Test unit written to \(.*\)$/\1/p" "$log" | head -1)
        if [ -n "$artifact" ] && [ -f "$artifact" ]; then
            cp "$artifact" "$build/fuzz/"
            artifact=$build/fuzz/$(basename "$artifact")
        fi
        reason=$(grep -m1 -E '^(==[0-9]+==)? ?(ERROR|SUMMARY)|runtime error|ASSERT' "$log")
        echo "FAIL fuzz $t: ${reason:-exit without a report}; log $build/fuzz/$t.log, input ${artifact:-none}"
        failed=1
        continue
    fi
    # Once more over all inputs, without mutation, for the report of covered functions.
    "$bin" -runs=0 -print_coverage=1 "$new" "$dir/corpus" >"$cov" 2>&1
    missing=$(missing_functions "$dir/reached" "$cov")
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    seeds=$(find "$dir/corpus" -type f | wc -l)
    found=$(find "$new" -type f | wc -l)
    if [ -n "$missing" ]; then
        cp "$cov" "$build/fuzz/$t.log"
        echo "FAIL fuzz $t: not reached: ${missing% } (log $build/fuzz/$t.log)"
        failed=1
    else
        echo "ok   fuzz $t: ${runs:-?} runs in $seconds s, $seeds seeds, $found new inputs," \
            "$(grep -cvE '^[[:space:]]*(#|$)' "$dir/reached") functions reached"
    fi
done
exit $failed
