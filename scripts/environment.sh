# Sourced by the scripts next to it: goes to the project's root and offers `install EXTRA`.
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON to one" >&2
    return 1
}

# Makes the virtual environment once and brings it to the pinned versions; a second call costs a second or two.
install() {
    local stamp=$venv/.installed-$1 wanted
    wanted=$(cat pyproject.toml constraints.txt | sha256sum)
    [ -x "$venv/bin/pip" ] || "$(find_python)" -m venv "$venv"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "installing the project into .venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]" >&2
    echo "$wanted" >"$stamp"
}
