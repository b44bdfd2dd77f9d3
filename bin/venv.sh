# shellcheck shell=sh
# The other scripts in bin/ source this file from the root of the checkout. `need_venv LOCK` installs the packages of the lock file
# into .venv. .venv/locks has the SHA-256 of each lock file that was installed completely. It is written last, so that an
# interrupted installation is repeated.

usable_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if usable_python "$python"; then return; fi
    done
    echo "strongroom: Python 3.11 or newer is required. If it is not on the PATH, set PYTHON=/path/to/python3." >&2
    exit 1
}

need_venv() {
    lock=$(sha256sum "$1")
    # A concurrent command waits for the first one. The lock is on the lock file, because .venv may not exist yet.
    exec 9<"$1"
    if command -v flock >/dev/null; then flock 9; fi
    if ! grep -qxF "$lock" .venv/locks 2>/dev/null || ! usable_python .venv/bin/python; then install_lock "$1"; fi
    exec 9<&-
}

install_lock() {
    echo "strongroom: installing $1 into .venv. This takes about a minute." >&2
    # The development lock contains the runtime lock. It is added to a complete installation, which may be in use. In all other
    # cases .venv is created again, so that no old package remains.
    if ! grep -qxF "$(sha256sum requirements.lock)" .venv/locks 2>/dev/null || ! usable_python .venv/bin/python; then
        find_python
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "strongroom: $python has no venv module. On Debian and Ubuntu, run: apt-get install python3-venv" >&2
            exit 1
        fi
        "$python" -m venv --clear --without-pip .venv
    fi
    rm -f .venv/locks
    # pip and setuptools of ensurepip are old and not needed at run time. They are removed unless the lock file names them.
    .venv/bin/python -m ensurepip >/dev/null
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --require-hashes --no-deps -r "$1"
    for tool in setuptools pip; do
        if ! grep -q "^$tool==" "$1"; then .venv/bin/python -m pip uninstall --quiet --quiet --yes "$tool"; fi
    done
    sha256sum requirements.lock "$1" | sort -u >.venv/locks.new
    mv .venv/locks.new .venv/locks
}
