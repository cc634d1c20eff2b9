#!/usr/bin/env bash
# Installs what the tests need, builds every binary, and runs every test.
#
#   ./test.sh                         all of it
#   ./test.sh -p keyway-envelope      these tests only; arguments go to `cargo test`
#
# Wants Debian 12 (or another Debian or Ubuntu) with rustup's stable toolchain and a C compiler.
# Installs packages as root, or through sudo, and only those that are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '\n== %s\n' "$*"; }
die() { printf 'test.sh: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# `sudo` and cron leave rustup's directory out of PATH.
have cargo || PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
have cargo || die "cargo not found; install the stable toolchain from https://rustup.rs"

# --- packages -------------------------------------------------------------------------------

# The tests' Python needs `cryptography`. A pyenv or a venv in front of PATH may lack it where
# Debian's own interpreter has it, so both are asked.
python_works() { "$1" -c 'from cryptography.hazmat.primitives.ciphers.aead import AESGCM' 2>/dev/null; }
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3 /usr/bin/python3; do
    if python_works "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

softhsm_module() {
  local module
  for module in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do
    [[ -e $module ]] && return
  done
  return 1
}

missing_packages() {
  have cc || echo gcc libc6-dev
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
  { have softhsm2-util && softhsm_module; } || echo softhsm2
  have pkcs11-tool || echo opensc
  have curl || echo curl
  { have nghttp && have h2load; } || echo nghttp2-client
  have jq || echo jq
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql
  have psql || echo postgresql-client
  { have redis-server && have redis-cli; } || echo redis-server
  have valgrind || echo valgrind
  find_python >/dev/null || echo python3 python3-cryptography
}

install_missing() {
  local packages=()
  read -r -a packages <<<"$(missing_packages | tr '\n' ' ')"
  ((${#packages[@]})) || return 0

  say "installing: ${packages[*]}"
  have apt-get || die "no apt-get here; install these yourself: ${packages[*]}"
  local as_root=()
  if ((EUID != 0)); then
    have sudo || die "needs root or sudo to install: ${packages[*]}"
    as_root=(sudo)
  fi
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3)
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >/dev/null
}

install_missing
PYTHON="$(find_python)" || die "no python3 with the package 'cryptography'"
export PYTHON

# --- build and test -------------------------------------------------------------------------

# CI refuses a lock file that is behind the manifests; a developer's change may update it.
locked=()
[[ -n ${CI:-} ]] && locked=(--locked)
export CARGO_NET_RETRY="${CARGO_NET_RETRY:-5}"

# The end-to-end tests start the real programs, so these are built before any test. With all targets, since that is
# what `cargo test` builds the dependencies for: with the binaries alone everything would be compiled twice.
say "building"
cargo build --workspace --all-targets "${locked[@]}"

if (($#)); then
  scope=(--workspace)
  for argument in "$@"; do
    case "$argument" in
      --) break ;;
      -p | -p?* | --package | --package=* | --workspace | --all) scope=() ;;
    esac
  done
  say "cargo test ${scope[*]} $*"
  exec cargo test "${scope[@]}" "${locked[@]}" "$@"
fi

say "unit, integration, end-to-end and documentation tests"
cargo test --workspace --no-fail-fast "${locked[@]}"

# The model checker swaps std's atomics in every crate, so it has a target directory of its own.
if [[ -e keycache/tests/loom.rs ]]; then
  say "keyring publication under the loom model checker"
  RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test -p keyway-keycache --test loom --release "${locked[@]}"
fi

# An implementation that shares no code with ours reads the published vectors.
if [[ -e tests/reader/keyway_reader.py && -e docs/envelope-vectors.json ]]; then
  say "the test vectors, read by the independent Python reader"
  "$PYTHON" tests/reader/keyway_reader.py check docs/envelope-vectors.json
fi

say "all tests passed"
