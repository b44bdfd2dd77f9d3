# shellcheck shell=sh
# Sourced by the commands beside it, from the top of the checkout: `need_venv LOCK` makes .venv hold what the lock file says.
# .venv/locks has the lines of `sha256sum` of the locks that were installed to their end. It is written last: an interrupted
# installation has no line and is done again.

usable_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if usable_python "$python"; then return; fi
    done
    echo "strongroom: needs Python 3.11 or newer; PYTHON=/path/to/python3 names one that is not on the PATH" >&2
    exit 1
}

need_venv() {
    lock=$(sha256sum "$1")
    # Two commands at once: the second waits for the first, on the lock file itself because .venv may not be there yet.
    exec 9<"$1"
    if command -v flock >/dev/null; then flock 9; fi
    if ! grep -qxF "$lock" .venv/locks 2>/dev/null || ! usable_python .venv/bin/python; then install_lock "$1"; fi
    exec 9<&-
}

install_lock() {
    echo "strongroom: making .venv from $1; this takes a minute, once" >&2
    # The development lock holds the runtime lock. It is added to a finished installation, which may be serving just now;
    # everything else begins anew, so that nothing older stays behind.
    if ! grep -qxF "$(sha256sum requirements.lock)" .venv/locks 2>/dev/null || ! usable_python .venv/bin/python; then
        find_python
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "strongroom: $python has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
            exit 1
        fi
        "$python" -m venv --clear --without-pip .venv
    fi
    rm -f .venv/locks
    # The pip and setuptools that Python brings are old, and nothing needs them at run time: they stay only if the lock names them,
    # in its version.
    .venv/bin/python -m ensurepip >/dev/null
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --require-hashes --no-deps -r "$1"
    for tool in setuptools pip; do
        if ! grep -q "^$tool==" "$1"; then .venv/bin/python -m pip uninstall --quiet --quiet --yes "$tool"; fi
    done
    sha256sum requirements.lock "$1" | sort -u >.venv/locks.new
    mv .venv/locks.new .venv/locks
}
