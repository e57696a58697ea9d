# Read by the scripts beside it (POSIX sh): finds or makes the environment, and installs the project into it.
# Sets `bin`, the folder of the environment's programs. `root` is the checkout.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

fail() { # sentence, hint
    printf 'Error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

is_new_enough() { # a Python that runs and is 3.11 or newer
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for python in python3 python3.13 python3.12 python3.14 python3.11 python; do
        if is_new_enough "$python"; then
            return
        fi
    done
    fail "there is no Python 3.11 or newer on the PATH" "install one, for instance \`apt install python3 python3-venv\`"
}

find_environment() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        bin=$VIRTUAL_ENV/bin
        is_new_enough "$bin/python" ||
            fail "the active environment $VIRTUAL_ENV has no Python 3.11 or newer" "leave it with \`deactivate\`"
        return
    fi
    bin=$root/.venv/bin
    if ! is_new_enough "$bin/python"; then
        find_python
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python cannot make virtual environments" "install its venv module, for instance \`apt install python3-venv\`"
        echo "making a virtual environment in .venv" >&2
        "$python" -m venv --clear "$root/.venv"
    fi
}

check_compilers() {
    "$bin/python" -c 'import llama_cpp' 2>/dev/null && return
    for compiler in "${CC:-cc}" "${CXX:-c++}"; do
        command -v "${compiler%% *}" >/dev/null ||
            fail "\`$compiler\` is not installed, and llama.cpp must be compiled" \
                "install a C and a C++ compiler, for instance \`apt install build-essential\`"
    done
}

install() { # what pip is to install: `.` or `.[test]`
    try_install "$1" || fail "the installation failed" "pip said why above"
}

try_install() {
    # Nothing to do while the same checkout, with the same pyproject.toml, is installed already.
    stamp=$(cksum <"$root/pyproject.toml")" $root $1"
    noted=$bin/../.lm-installed
    if grep -qxF "$stamp" "$noted" 2>/dev/null; then
        return
    fi
    check_compilers
    "$bin/python" -m pip --version >/dev/null 2>&1 || "$bin/python" -m ensurepip >/dev/null
    echo "installing lm into ${bin%/bin} (llama.cpp is compiled once, which takes about three minutes)" >&2
    (cd "$root" && "$bin/python" -m pip install --quiet --disable-pip-version-check --editable "$1") || return
    echo "$stamp" >>"$noted"
}
