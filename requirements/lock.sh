#!/usr/bin/env bash
# Writes the lock files anew from pyproject.toml: versions and hashes, for every platform and Python >= 3.11.
# usage: requirements/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { # file, then what uv needs to know of it
  local out=$1; shift
  uv pip compile -q pyproject.toml --python-version 3.11 --universal --no-emit-index-url --generate-hashes \
    --custom-compile-command "requirements/lock.sh" --overrides requirements/overrides.txt "$@" -o "$out"
}
compile requirements/worker.lock --extra s3 --extra otel --extra console --extra local "${@}"
compile requirements/all.lock --extra s3 --extra otel --extra console --extra local --extra train --extra tensorrt-check --extra heif --extra dev -c requirements/worker.lock "${@}"
uv pip compile -q requirements/triton.txt --no-deps --python-version 3.11 --universal --no-emit-index-url --generate-hashes \
  --custom-compile-command "requirements/lock.sh" "${@}" -o requirements/triton.lock
