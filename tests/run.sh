#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every suite that needs no GPU. Closes with `N passed, N failed, N skipped` and a matching
# exit code. --full runs the long forms (60 s of each fuzz target, more simulator seeds, larger oracles). ONLY="unit e2e" picks suites; KEEP=1
# leaves the logs of suites that passed, too. Build folders: build/ and build/{races,asan,tsan,fuzz}.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # `sh tests/run.sh` is natural to type
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. deploy/packages.sh

full=0
for arg in "$@"; do
    case "$arg" in
    --full) full=1 ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "usage: bash tests/run.sh [--full]" >&2; exit 2 ;;
    esac
done
export RACKLM_FULL=$full
export RACKLM_TEST_SHARED=${RACKLM_TEST_SHARED:-$top/../shared}
build=$top/build
programs="racklm racklm-coordinator racklm-worker"
logs=$build/test-logs
passed=0 failed=0 skipped=0 failures=()
begin=$SECONDS
sim_env=(RACKLM_FULL=$full)
# ThreadSanitizer has something to say about programs with threads only, and bad input takes the same ways through them again and again: the
# short form leaves out the others.
tsan_targets=tests_threaded tsan_labels=(threaded) tsan_skips=(--ignore=tests/e2e/test_bad_input.py)
[ "$full" = 0 ] || tsan_targets="tests_unit tests_sim" tsan_labels=(unit sim) tsan_skips=()
skip_ctest=()
[ "$full" = 0 ] || sim_env+=(RACKLM_SIM_SEEDS=100000)
mkdir -p "$logs"

# suite NAME BUDGET_S COMMAND...: runs it with its own log, adds up its counts, prints its time against its budget.
suite() {
    local name=$1 budget=$2 start=$SECONDS rc p=0 f=0 s=0
    shift 2
    [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" ${name%%:*} "* ]] || return 0
    "$@" >"$logs/$name.log" 2>&1
    rc=$?
    read -r p f s < <(counts "$logs/$name.log")
    [ "$rc" = 0 ] || [ "$f" -gt 0 ] || f=1
    [ $((p + f + s)) -gt 0 ] || p=1
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-14s %4d passed %3d failed %3d skipped  %4d s of %d s\n' "$name" "$p" "$f" "$s" $((SECONDS - start)) "$budget"
    if [ "$f" -gt 0 ]; then
        failures+=("$name")
        failing "$logs/$name.log" | tail -n 200 | sed 's/^/    /'
    elif [ "$s" -gt 0 ]; then
        grep -aiE '(SKIPPED|\*\*\*Skipped|^skipped|SKIP )' "$logs/$name.log" | sort -u | head -n 8 | sed 's/^/    /'
    fi
}

# What a CI log has to say about a failure: of every failing CTest program the lines that name a failure and the end of its output, of anything
# else the end of the log.
failing() {
    awk '
        function show(  i) {
            for (i = 1; i <= n_notable && i <= 20; i++) print notable[i]
            for (i = n > 40 ? n - 39 : 1; i <= n; i++) print line[i]
            n = n_notable = 0
        }
        /^ *[0-9]+\/[0-9]+ Test +#|^ *Start +[0-9]+:|% tests passed/ {
            show()
            inside = /\*\*\*/ && !/\*\*\*Skipped/
            if (inside) { found = 1; print }
            next
        }
        inside { line[++n] = $0 }
        inside && /\[  (ERROR|FAILED)|\[   LINE|Sanitizer:|runtime error:|ASSERT|[Ee]rror:/ { notable[++n_notable] = $0 }
        END { show(); exit !found }' "$1" || tail -n 100 "$1"
}

# "passed failed skipped" of a log: CTest's list, pytest's closing line, or the lines of the fuzz runner.
counts() {
    awk '
        /^ *[0-9]+\/[0-9]+ Test +#/ { if (/\*\*\*Skipped/) s++; else if (/ Passed /) p++; else f++ }
        /^(=+ )?[0-9]+ (passed|failed|skipped|deselected|errors?)[, ]/ {
            line = $0; gsub(/[=,]/, " ", line); n = split(line, w, " ")
            for (i = 2; i <= n; i++) {
                if (w[i] == "passed") p += w[i-1]
                if (w[i] == "failed" || w[i] ~ /^errors?$/) f += w[i-1]
                if (w[i] == "skipped") s += w[i-1]
            }
        }
        /^ok +fuzz / { p++ }
        /^FAIL fuzz / { f++ }
        END { print p + 0, f + 0, s + 0 }' "$1"
}

configure_and_build() { # DIR "NINJA TARGETS" CMAKE_OPTIONS...
    local dir=$1 targets=$2
    shift 2
    # shellcheck disable=SC2086
    cmake -S "$top" -B "$dir" -G Ninja "$@" && ninja -C "$dir" $targets
}

python_env() {
    [ -x "$build/venv/bin/python" ] || python3 -m venv "$build/venv" || return 1
    local lists=(-r tests/requirements.txt)
    [ "$full" = 0 ] || lists+=(-r tests/requirements-full.txt) # larger ones; what needs them says skipped without
    "$build/venv/bin/pip" install -q --disable-pip-version-check "${lists[@]}"
}

label() { # BUILD_DIR LABEL...: two tests at a time; none depends on the time it takes
    local dir=$1
    shift
    ctest --test-dir "$dir" -L "^($(IFS='|'; echo "$*"))\$" --output-on-failure --no-tests=error --timeout 600 -j 2 "${skip_ctest[@]}"
}

# What is about GPUs runs on the emulator (tests/gpu/emu); nothing of it needs a GPU, but the CUDA toolkit's headers.
emulated() { # BUILD_DIR COMMAND...
    if ! grep -q '^RACKLM_EMU_BUILD:INTERNAL=ON' "$1/CMakeCache.txt"; then
        echo "SKIPPED: no CUDA toolkit (or no libboost-context-dev) on this machine"
        echo "0 passed, 0 failed, 1 skipped"
        return 0
    fi
    shift
    "$@"
}

# A seed of the emulator's order, another each day; three in the long form.
emu_seed=$(($(date +%s) / 86400))
emu_seeds=$emu_seed
[ "$full" = 0 ] || emu_seeds="$emu_seed 1 2"
gpu_label() { # BUILD_DIR
    local rc=0 seed
    for seed in $emu_seeds; do
        echo "RACKLM_EMU_SEED=$seed"
        RACKLM_EMU_SEED=$seed label "$1" gpu || rc=1
    done
    return $rc
}

# Registers, shared memory and spills of each kernel: no kernel may spill, nothing may warn. One architecture a day and PTX; all in the long form.
ptxas_table() {
    if ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
        echo "SKIPPED: no nvcc on this machine"
        echo "0 passed, 0 failed, 1 skipped"
        return 0
    fi
    local which=(--today)
    [ "$full" = 0 ] || which=()
    python3 tests/gpu/ptxas.py "${which[@]}" --ptx
}

end_to_end() { # PYTEST_OPTIONS...: two files at a time
    python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile "$@" tests/e2e
}

# shellcheck disable=SC2086
install_packages $PACKAGES_BUILD $PACKAGES_TEST || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }

suite python $((full ? 180 : 60)) python_env
suite build 150 configure_and_build "$build" all -DCMAKE_BUILD_TYPE=Release -DRACKLM_TESTS=ON -DRACKLM_PYTHON="$build/venv/bin/python"
export PATH="$build/venv/bin:$PATH"
suite unit 60 label "$build" unit
suite kernels 40 label "$build" kernels
suite sim $((full ? 300 : 45)) env "${sim_env[@]}" ctest --test-dir "$build" -L '^sim$' --output-on-failure --no-tests=error
export RACKLM_EMU_SEED=$emu_seed
suite gpu $((full ? 180 : 60)) emulated "$build" gpu_label "$build"
suite gpu:logits $((full ? 400 : 60)) emulated "$build" python -m pytest -q -p no:cacheprovider -n 2 tests/gpu
suite gpu:script 60 emulated "$build" env RACKLM_BUILD="$build" bash tests/gpu/run.sh --emulated
suite gpu:ptxas $((full ? 900 : 150)) ptxas_table
if [ "$full" = 1 ]; then
    suite gpu:races:build 100 configure_and_build "$build/races" tests_gpu -DCMAKE_BUILD_TYPE=Release -DRACKLM_EMU_RACES=ON
    suite gpu:races 500 emulated "$build/races" gpu_label "$build/races"
    suite gpu:mutants 2400 emulated "$build" python tests/gpu/mutants.py --seeds 3
fi
suite oracle $((full ? 600 : 90)) python -m pytest -q -p no:cacheprovider tests/oracle
suite e2e $((full ? 600 : 200)) end_to_end

if [ -z "${ONLY:-}" ] || [[ " ${ONLY:-} " =~ " "(asan|tsan|fuzz)" " ]]; then
    export TSAN_OPTIONS="suppressions=$top/tests/tsan.supp" RACKLM_SIM_SEEDS=300
    skip_ctest=(-E oracle) # no numbers are to be seen there
    suite asan:build 150 configure_and_build "$build/asan" "$programs tests_unit tests_kernels tests_sim tests_gpu" -DCMAKE_BUILD_TYPE=Debug -DRACKLM_SANITIZE=address,undefined
    suite asan $((full ? 300 : 90)) label "$build/asan" unit kernels sim
    suite asan:gpu $((full ? 400 : 120)) emulated "$build/asan" gpu_label "$build/asan"
    RACKLM_BUILD=$build/asan suite asan:e2e 120 end_to_end -m sanitizer
    suite tsan:build 150 configure_and_build "$build/tsan" "$programs $tsan_targets" -DCMAKE_BUILD_TYPE=Debug -DRACKLM_SANITIZE=thread
    suite tsan $((full ? 400 : 90)) label "$build/tsan" "${tsan_labels[@]}"
    RACKLM_BUILD=$build/tsan suite tsan:e2e $((full ? 400 : 120)) end_to_end -m sanitizer "${tsan_skips[@]}"
    suite fuzz:build 150 configure_and_build "$build/fuzz" racklm_fuzz -DCMAKE_BUILD_TYPE=Debug -DRACKLM_FUZZ=ON -DCMAKE_C_COMPILER=clang
    suite fuzz $((full ? 450 : 70)) bash tests/fuzz/run.sh $((full ? 60 : 6)) "$build/fuzz"
fi

printf '%d s in all\n' $((SECONDS - begin))
[ ${#failures[@]} = 0 ] || printf 'failed: %s (logs in build/test-logs)\n' "${failures[*]}"
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ]
