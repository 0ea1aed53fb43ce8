# Sourced by demo.sh and test.sh: sets BIN to the scripts folder of .venv, making .venv when there is none.
# Works in Git-Bash too, where that folder is called Scripts.

find_python() {
    local candidate
    for candidate in python3.11 python3.10 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.10 or newer found on PATH" >&2
    return 1
}

if [ ! -d .venv ]; then
    "$(find_python)" -m venv .venv
fi
BIN=.venv/bin
[ -d "$BIN" ] || BIN=.venv/Scripts

# install_extra NAME: this package, editable, with an extra, at the versions of scripts/constraints.txt.
install_extra() {
    local pinned=scripts/constraints.txt python="$BIN/python" torch
    # Nothing to do when this extra was installed from these very files.
    local stamp=".venv/installed-$1"
    if [ -f "$stamp" ] && [ ! "$pinned" -nt "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then
        return
    fi
    echo "installing the '$1' extra into .venv (some minutes the first time) ..."
    torch=$(grep '^torch==' "$pinned")
    # torch first, and the CPU build where pip can find one: on Linux the usual build brings gigabytes of CUDA.
    "$python" -m pip show --quiet torch 2>/dev/null ||
        "$python" -m pip install -qq --disable-pip-version-check "$torch+cpu" 2>/dev/null ||
        "$python" -m pip install -qq --disable-pip-version-check "$torch"
    "$python" -m pip install -qq --disable-pip-version-check -c "$pinned" -e ".[$1]"
    touch "$stamp"
}
