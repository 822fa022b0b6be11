#!/usr/bin/env bash
# Make this machine a node: the laptop's versions in a virtual environment, and what every shell needs.
# `ray up` runs it on every node; run it by hand as often as you like, it does what is left to do.
#
#   bash ~/aiornot/cluster/node_setup.sh
#
# AIORNOT_HOUSE   the source tree (default: the folder above this file)
# AIORNOT_VENV    the environment  (default: ~/aiornot-venv); one that is there already is completed
# AIORNOT_EXTRAS  extras of the package to install (default: ray,wandb)
set -euo pipefail

HOUSE=${AIORNOT_HOUSE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
VENV=${AIORNOT_VENV:-$HOME/aiornot-venv}
EXTRAS=${AIORNOT_EXTRAS:-ray,wandb}
STAMP=$VENV/.aiornot-node
PROFILE=$HOME/.bashrc # `ray up`, `ray exec` and the start commands run in a login shell that reads it

say() { echo "node_setup: $*" >&2; }

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        # ensurepip is what Debian and Ubuntu leave out without their package python3-venv.
        if command -v "$name" > /dev/null &&
            "$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

python_or_install() {
    find_python && return
    say "no Python 3.11 or newer with venv; installing the system's"
    # A machine that has just booted may still hold the lock of its own updates.
    sudo apt-get -o DPkg::Lock::Timeout=300 update -q >&2
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        install -q -y python3-venv >&2
    find_python && return
    say "the system's Python is older than 3.11: install one, or choose a newer image"
    return 1
}

# Code is linked, not copied: only these files decide what is installed.
fingerprint() {
    (cd "$HOUSE" && cat pyproject.toml constraints.txt cluster/aws.txt cluster/node_setup.sh &&
        echo "$EXTRAS") | sha256sum | cut -d ' ' -f 1
}

install_packages() {
    local python
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(python_or_install)
        "$python" -m venv "$VENV"
    fi
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet install)
    # The build backend is pinned, too: without isolation pip takes what is here.
    "${pip[@]}" -c "$HOUSE/constraints.txt" hatchling editables
    "${pip[@]}" -c "$HOUSE/constraints.txt" --no-build-isolation -e "${HOUSE}[$EXTRAS]"
    # See the file: --no-deps, since botocore still forbids the dateutil that is pinned.
    "${pip[@]}" -c "$HOUSE/constraints.txt" --no-deps -r "$HOUSE/cluster/aws.txt"
}

# Once per line, however often this runs.
ensure_line() {
    touch "$PROFILE"
    grep -qxF "$1" "$PROFILE" || echo "$1" >> "$PROFILE"
}

wanted=$(fingerprint)
if [ "$(cat "$STAMP" 2> /dev/null)" = "$wanted" ]; then
    say "$VENV is as it should be"
else
    rm -f "$STAMP"
    install_packages
    echo "$wanted" > "$STAMP" # last: a set-up that was cut short starts again
    say "installed into $VENV"
fi
ensure_line "export PATH=\"$VENV/bin:\$PATH\""
ensure_line "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"
if [ -f "$HOME/.ray/auth_token" ]; then
    chmod 600 "$HOME/.ray/auth_token" # whatever it was on the laptop
else
    say "the token .ray/auth_token is missing: run 'ray get-auth-token --generate' on the laptop, then ray up"
    exit 1
fi
