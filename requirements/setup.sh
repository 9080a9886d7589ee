#!/usr/bin/env bash
# Makes .venv from a lock file, with uv where it can be had and with venv + pip where not; no root, no system packages.
# usage: requirements/setup.sh worker|all
set -euo pipefail
cd "$(dirname "$0")/.."
set_name=$1
lock=requirements/$set_name.lock

fail() { printf 'error: %s\n' "$*" >&2; exit 3; }
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

[ "$(uname -s)" = Linux ] || fail "Assay runs on Linux; here: $(uname -s). On another system use deploy/compose.yaml."
[ "$(uname -m)" = x86_64 ] || fail "Assay runs on x86-64; here: $(uname -m). On another machine use deploy/compose.yaml."

# pip and uv trust their own list of authorities; the system's has a company's own too.
bundle=/etc/ssl/certs/ca-certificates.crt
if [ -r $bundle ]; then
  export SSL_CERT_FILE=${SSL_CERT_FILE:-$bundle} PIP_CERT=${PIP_CERT:-$bundle}
fi

python=
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
  if command -v "$candidate" >/dev/null && fits "$candidate"; then python=$(command -v "$candidate"); break; fi
done

# Debian's and Ubuntu's python3 come without pip and venv: their package of pip's wheel is unpacked below .assay, without root.
system_pip() {
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
  local own=$PWD/.assay/pip package=python3-pip-whl
  local private=(-o "Dir::State::lists=$own/lists" -o "Dir::Cache=$own/cache" -o Debug::NoLocking=1)
  mkdir -p "$own/lists/partial" "$own/cache/archives/partial"
  (
    cd "$own"
    apt-get -qq -o APT::Sandbox::User= download $package ||
      { apt-get -qq -o APT::Sandbox::User= "${private[@]}" update && apt-get -qq -o APT::Sandbox::User= "${private[@]}" download $package; }
    dpkg -x $package*.deb .
  ) >/dev/null 2>&1 || return 1
  local wheels=("$own"/usr/share/python-wheels/pip-*.whl)
  echo "${wheels[0]}/pip"
}

uv=$(command -v uv || true)
if [ -z "$uv" ] || ! "$uv" --version >/dev/null 2>&1; then
  uv=$PWD/.assay/uv/bin/uv
  if ! [ -x "$uv" ]; then
    any=${python:-$(command -v python3 || true)}
    [ -n "$any" ] || fail "no python3 found; install it: sudo apt-get install python3 python3-pip"
    echo "setup: installing uv into .assay/uv"
    # --target leaves the system's and the user's packages alone, so that pip does it where PEP 668 forbids more.
    if "$any" -m pip --version >/dev/null 2>&1; then
      "$any" -m pip install -q --target .assay/uv uv || uv=
    elif "$any" -m venv .assay/uv-venv >/dev/null 2>&1; then
      { .assay/uv-venv/bin/python -m pip install -q --target .assay/uv uv || uv=; } && rm -rf .assay/uv-venv
    elif rm -rf .assay/uv-venv && pip=$(system_pip); then
      "$any" "$pip" install -q --target .assay/uv uv || uv=
      rm -rf .assay/pip
    else
      fail "python3 has neither pip nor venv, and there is no uv; one of them: sudo apt-get install python3-pip (or python3-venv)"
    fi
  fi
fi

if [ -x .venv/bin/python ] && ! fits .venv/bin/python; then
  echo "setup: .venv does not work any more (its Python is gone or too old); making it anew"
  rm -rf .venv
fi
echo "setup: installing $lock into .venv"
if [ -n "$uv" ]; then
  if ! [ -x .venv/bin/python ]; then
    # Without a fitting Python here uv fetches one of its own.
    "$uv" venv -q --allow-existing --python "${python:->=3.11}" .venv ||
      fail "Python >= 3.11 is needed and uv could not fetch one; install it: sudo apt-get install python3.11 (or newer)"
  fi
  "$uv" pip install -q --python .venv --overrides requirements/overrides.txt -r "$lock"
  "$uv" pip install -q --python .venv --no-deps -e .
else
  [ -n "$python" ] || fail "Python >= 3.11 is needed; install it: sudo apt-get install python3.11 (or newer)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv || fail "venv does not work; install it: sudo apt-get install python3-venv"
  .venv/bin/python -m pip install -q --no-deps --require-hashes -r "$lock"
  .venv/bin/python -m pip install -q --no-deps -e .
fi
# The browser of the tests, unpacked below .assay where there is none; without one they are skipped and say so.
if [ "$set_name" = all ]; then .venv/bin/python -m tests.browser.chromium; fi
