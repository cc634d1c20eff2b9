#!/usr/bin/env bash
# Builds the released form of what is counted, counts instructions, and compares them with baseline.json.
#
#   benches/instructions/run.sh            compare; fails if something costs more than the baseline allows
#   benches/instructions/run.sh --save     rewrite the baseline
#   benches/instructions/run.sh --help     the other options
#
# Always these packages in one build: with others, Cargo may choose other features of the dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command -v cargo >/dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
command -v valgrind >/dev/null || {
  echo "valgrind is not installed: apt-get install valgrind (./test.sh installs it)" >&2
  exit 1
}

# What can be told to be incomparable without a build of minutes. The program looks at the rest.
baseline=benches/instructions/baseline.json
if (($# == 0)) && [[ -e $baseline ]]; then
  for made_with in "$(rustc --version)" "$(cc --version | head -n 1)" "$(getconf GNU_LIBC_VERSION)" "$(valgrind --version)"; do
    if ! grep -qF "\"$made_with\"" "$baseline"; then
      echo "not comparable: the baseline was not made with $made_with, so nothing is counted"
      echo "Counts of your own to compare with: $0 --baseline FILE --save, later $0 --baseline FILE"
      exit 0
    fi
  done
fi

locked=()
[[ -n ${CI:-} ]] && locked=(--locked)
cargo build --release -p keyway-instructions -p keyway-proxy -p keyway-bridge "${locked[@]}"
exec "${CARGO_TARGET_DIR:-target}/release/keyway-instructions" "$@"
