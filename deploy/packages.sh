# Debian and Ubuntu packages, in one place; sourced by deploy/quickstart.sh and tests/run.sh. Defines install_packages LIST...
PACKAGES_BUILD="ca-certificates cmake gcc ninja-build pkg-config libc6-dev
    libcurl4-openssl-dev libevent-dev libhwloc-dev libjansson-dev libpcre2-dev libprotobuf-c-dev libsodium-dev libucx-dev libutf8proc-dev libyaml-dev libzmq3-dev
    protobuf-c-compiler"
PACKAGES_TEST="g++ libboost-context-dev clang llvm iproute2 nftables libcmocka-dev libsimde-dev prometheus python3 python3-venv procps"

# Says what is missing, installs it (sudo only for somebody who is not root), and stops with a clear line where it cannot.
install_packages() {
    missing=""
    for p in "$@"; do
        [ "$(dpkg-query -W -f='${Status}' "$p" 2>/dev/null)" = "install ok installed" ] || missing="$missing $p"
    done
    [ -z "$missing" ] && return 0
    sudo=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || { echo "error: these packages are missing and there is no sudo:$missing" >&2; return 1; }
        sudo=sudo
    fi
    echo "installing:$missing"
    log=$(mktemp)
    if ! { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        echo "error: apt could not install the packages above" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
