#!/bin/bash
# The proof and the stress part on free-threaded CPython 3.13, where threads run at once instead of taking turns.
#
#   stress/free-threaded.sh DIR [SECONDS]
#
# DIR keeps the interpreter and its virtual environment for the next time; SECONDS (60) bounds the exploration, and the
# soak by twice half of it: aiosmtpd and Postfix. PYTHON3_13T=/path/to/python3.13t takes one that is there; otherwise it
# is built from Debian's source package (3 to 6 minutes on 2 cores), with a configuration of apt of its own, so that
# nothing of the machine is changed or installed. A compiler, make and the -dev packages of libssl, zlib and libffi must
# be there. SUITE=all runs every test, not only those of the proof.
#
# Ends with 0 if all passed, 1 if anything failed, and 77 with the reason if there is no such interpreter to be had.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
directory=$(mkdir -p "${1:?usage: $0 DIR [SECONDS]}" && cd "$1" && pwd)
seconds=${2:-60}
python=${PYTHON3_13T:-$directory/python/bin/python3.13t}
environment=$directory/venv

skip() {
    echo "skipped: $1" >&2
    exit 77
}

fetch() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    for tool in apt-get dpkg-source gcc make; do
        command -v "$tool" >/dev/null || skip "no $tool: free-threaded CPython cannot be built here"
    done
    [ -r "$keyring" ] || skip "no $keyring: Debian's source package could not be verified"
    # The machine's own mirror, in the old form of a list or in the new one; without one, Debian's.
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' | grep -v security | head -n 1) || true
    mkdir -p "$directory"/apt/{lists/partial,cache/archives/partial,parts} "$directory/source"
    echo "deb-src [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} trixie main" >"$directory/apt/sources.list"
    cat >"$directory/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$directory/apt/sources.list";
Dir::Etc::sourceparts "$directory/apt/parts";
Dir::State::lists "$directory/apt/lists";
Dir::Cache "$directory/apt/cache";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG=$directory/apt/apt.conf
    apt-get update -q >"$directory/apt/log" 2>&1 || skip "apt-get update failed: $(tail -n 1 "$directory/apt/log")"
    (cd "$directory/source" && apt-get source --download-only python3.13) >>"$directory/apt/log" 2>&1 ||
        skip "Debian's source package python3.13 cannot be had: $(tail -n 1 "$directory/apt/log")"
}

build() {
    local log=$directory/build.log
    echo "building free-threaded CPython 3.13 (log: $log)"
    cd "$directory/source"
    tar xf python3.13_*.orig.tar.*z
    cd Python-3.13.*/
    if ! { ./configure --disable-gil --prefix="$directory/python" && make -j"$(nproc)" && make install; } >"$log" 2>&1; then
        echo "the build failed:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
}

if [ ! -x "$python" ]; then
    fetch
    (build)
fi
"$python" -c 'import sys, ssl, ctypes; assert not sys._is_gil_enabled(); print("Python", sys.version)'

if [ ! -x "$environment/bin/pytest" ]; then
    "$python" -m venv "$environment"
    # The last Hypothesis that is pure Python here: later ones want a Rust toolchain on this interpreter.
    "$environment/bin/pip" install -q pytest hypothesis==6.113.0 'aiosmtpd>=1.4.6' 'rich>=13'
    # Certificates need a compiled package, which may have no wheel for this interpreter.
    "$environment/bin/pip" install -q --only-binary :all: trustme || echo "no trustme here: what needs it is left out"
fi

cd "$repository"
unset PYTHONPATH
export PYTHON_GIL=0 # also where an extension module asks for the lock
python=$environment/bin/python
failed=0
run() {
    echo "+ $*"
    "$@" || failed=1
}

case ${SUITE:-proof} in
all) run "$python" -m pytest -q -p no:cacheprovider tests ;;
*) run "$python" -m pytest -q -p no:cacheprovider tests/proof tests/detsched ;;
esac
run "$python" -m stress.explore --seconds "$seconds"
run "$python" -m stress.soak --seconds "$((seconds / 2))"
if "$python" -c 'import trustme' 2>/dev/null; then
    run "$python" -m stress.soak --seconds "$((seconds / 2))" --server postfix
fi
exit "$failed"
