#!/usr/bin/env bash
# GPU checks on a machine that has one; where there is none it says SKIPPED and why, and exits with 77: never a pass.
#
#   run.sh --pack       on the machine that builds: what a GPU machine needs, in build/gpu-pack (below 60 MiB). RACKLM_CUDA_ARCHS: default 90a, with its PTX
#   run.sh              on a machine with a GPU, in a checkout with build/gpu-pack beside it: kernels, compute-sanitizer, logits against the CPU and
#                       transformers, groups on one GPU, the speed table; within 9 minutes. Closes with `N passed, N failed, N skipped`
#   run.sh --emulated   the same flow in its short form on emulated GPUs, from the build in RACKLM_BUILD (default build/): what tests this script
#
# CUDA, cuBLASLt and NCCL are that machine's; more options go to checks.py (--no-speed, --minutes N, --scratch DIR).
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top" || exit 1
pack=$top/build/gpu-pack
real=$top/build/gpu-real
programs="racklm racklm-coordinator racklm-worker mkmodel"
limit_mib=60

# ---- packing

# What a program needs of the machine it was built on, without glibc itself (those of newer hosts serve) and without what belongs to the driver.
libraries() {
    ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -Ev '/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv|util|anl|nss_[a-z]+|cuda|nvidia-ml))\.so'
}

pack() {
    local archs=${RACKLM_CUDA_ARCHS:-90a} f
    cmake -S . -B "$real" -G Ninja -DCMAKE_BUILD_TYPE=Release -DRACKLM_CUDA=ON -DRACKLM_CUDA_ARCHS="$archs" || return 1
    # shellcheck disable=SC2086
    ninja -C "$real" ${JOBS:+-j$JOBS} $programs tests_gpu_device || return 1
    rm -rf "$pack" && mkdir -p "$pack/bin" "$pack/tests" "$pack/lib" "$pack/python" || return 1
    for f in $programs; do
        cp "$real/bin/$f" "$pack/bin/" || return 1
    done
    cp "$real"/gpu/* "$pack/tests/" || return 1
    for f in $(libraries "$pack"/bin/* "$pack"/tests/*); do
        cp -L "$f" "$pack/lib/" || return 1
        # UCX looks for its transports beside itself.
        if [[ $f == */libucs.so* ]] && [ -d "$(dirname "$f")/ucx" ]; then
            mkdir -p "$pack/lib/ucx" && cp -L "$(dirname "$f")"/ucx/libuct_cma.so* "$pack/lib/ucx/"
        fi
    done
    strip --strip-unneeded "$pack"/bin/* "$pack"/tests/* "$pack"/lib/*.so* "$pack"/lib/ucx/*.so* 2>/dev/null
    # For the random models; pure Python.
    f=$("${RACKLM_PYTHON:-python3}" -c 'import gguf, os; print(os.path.dirname(gguf.__file__))' 2>/dev/null)
    [ -n "$f" ] && cp -r "$f" "$pack/python/" && rm -rf "$pack"/python/gguf/__pycache__
    git rev-parse HEAD >"$pack/commit" 2>/dev/null
    local mib
    mib=$(du -sk "$pack" | awk '{ printf "%.1f", $1 / 1024 }')
    echo "build/gpu-pack: $mib MiB (at most $limit_mib): $(ls "$pack/bin" "$pack/tests" | grep -c .) programs, $(ls "$pack/lib" | wc -l) libraries, archs $archs"
    [ -n "$f" ] || echo "the Python package gguf was not found here: random models are left out unless the GPU machine has it"
    awk -v m="$mib" -v l="$limit_mib" 'BEGIN { exit !(m < l) }' || { echo "too big" >&2; return 1; }
}

# ---- what the machine has

find_library() { # NAME: the folder of the first found; the loader's own cache, the toolkit's places, Python's nvidia packages
    local f
    f=$(ldconfig -p 2>/dev/null | awk -v n="$1" '$1 == n { print $NF; exit }')
    for f in $f "${CUDA_HOME:-/usr/local/cuda}"/lib64/$1 /usr/local/cuda*/lib64/$1 /usr/local/cuda*/targets/*/lib/$1 /usr/lib/x86_64-linux-gnu/$1 /usr/lib64/$1 /opt/*/lib/$1 \
        $(python_sites | sed "s|\$|/nvidia/*/lib/$1|"); do
        [ -e "$f" ] && dirname "$f" && return 0
    done
    return 1
}

pythons() { # interpreters, the usual ones first
    local p
    for p in "${RACKLM_PYTHON:-}" python3 python "${CONDA_PREFIX:-/nonexistent}/bin/python" "${VIRTUAL_ENV:-/nonexistent}/bin/python" /opt/*/bin/python3 /usr/bin/python3; do
        [ -n "$p" ] && command -v "$p"
    done | awk '!seen[$0]++'
}
python_sites() {
    local p
    for p in $(pythons); do
        "$p" -c 'import site, sys; print("\n".join(dict.fromkeys([*site.getsitepackages(), *sys.path])))' 2>/dev/null | grep -E '(site|dist)-packages$'
    done | awk '!seen[$0]++'
}
python_with() { # MODULES: the first interpreter that has them
    local p
    for p in $(pythons); do
        PYTHONPATH=$pack/python${PYTHONPATH:+:$PYTHONPATH} "$p" -c "import $1" >/dev/null 2>&1 && echo "$p" && return 0
    done
    return 1
}

skip() {
    echo "SKIPPED: $*"
    echo "0 passed, 0 failed, 1 skipped"
    exit 77
}

no_device() { # says why there is none, or fails
    if [ ! -e /dev/nvidiactl ] && ! [ -e /dev/dxg ]; then
        echo "no NVIDIA driver on this machine (no /dev/nvidiactl)"
    elif ! ldconfig -p | grep -q 'libcuda\.so\.1' && [ -z "$(ls /usr/lib*/libcuda.so.1 /usr/lib/*/libcuda.so.1 /usr/local/nvidia/lib64/libcuda.so.1 2>/dev/null)" ]; then
        echo "the driver's library libcuda.so.1 is not here"
    elif command -v nvidia-smi >/dev/null && ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo "the driver shows no GPU: $(nvidia-smi -L 2>&1 | head -n 1)"
    else
        return 1
    fi
}

on_device() {
    local why
    why=$(no_device) && skip "$why"
    if [ ! -x "$pack/bin/racklm" ]; then
        pack >"$top/build/gpu-pack.log" 2>&1 || { tail -n 5 "$top/build/gpu-pack.log"; echo "no build/gpu-pack, and it cannot be built here (run.sh --pack elsewhere)"; exit 1; }
    fi
    local python torch nccl lt cudart sanitizer
    python=$(python_with numpy,gguf) || python=$(python_with numpy) || { echo "no Python with numpy"; exit 1; }
    torch=$(python_with torch,transformers,gguf) || torch=
    nccl=$(find_library libnccl.so.2) || nccl=
    lt=$(find_library libcublasLt.so.13) || lt=$(find_library libcublasLt.so.12) || lt=
    cudart=$(find_library libcudart.so.13) || cudart=
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/*/bin/compute-sanitizer 2>/dev/null | head -n 1)
    command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader
    echo "pack of $(cat "$pack/commit" 2>/dev/null); cuBLASLt: ${lt:-none}; NCCL: ${nccl:-none}; compute-sanitizer: ${sanitizer:-none}; torch and transformers: ${torch:-none}"
    local scratch=${TMPDIR:-/tmp}
    [ "$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt $((40 << 20)) ] 2>/dev/null && scratch=/dev/shm
    exec "$python" tests/gpu/checks.py --bin "$pack/bin" --tests "$pack/tests" --programs "$(cd "$pack/tests" && echo test_*)" --libs "$pack/lib" ${lt:+--libs "$lt"} \
        ${nccl:+--libs "$nccl" --nccl "$nccl"} ${torch:+--torch "$torch"} ${sanitizer:+--sanitizer "$sanitizer"} --python-extra "$pack/python" --scratch "$scratch" "$@"
}

emulated() {
    local build=${RACKLM_BUILD:-$top/build} torch python
    [ -x "$build/tests/racklm-logits-emu" ] || skip "no emulator in $build (CUDA toolkit's headers, libboost-context-dev)"
    ln -sf ../../bin/mkmodel "$build/emu/bin/mkmodel"
    python=$(python_with numpy,gguf) || skip "no Python with numpy and gguf"
    torch=$(python_with torch,transformers,gguf) || torch=
    exec "$python" tests/gpu/checks.py --emulated --short --bin "$build/emu/bin" --tests "$build/tests" --programs "test_fused_emu" ${torch:+--torch "$torch"} \
        --scratch "${TMPDIR:-/tmp}" "$@"
}

case "${1:-}" in
--pack) pack ;;
--emulated) shift; emulated "$@" ;;
-h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
*) on_device "$@" ;;
esac
