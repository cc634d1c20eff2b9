#!/usr/bin/env bash
# Builds the fuzz targets with stable Rust and runs each for SECONDS: fuzz/run.sh SECONDS [TARGET…]
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET…]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(header_parse compact_open opener_splits seal_open_roundtrip stream_records)

# libFuzzer is C++; its sources come with the crate libfuzzer-sys.
if ! command -v c++ >/dev/null; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends g++
fi

host=$(rustc -vV | sed -n 's/^host: //p')
# Coverage for libFuzzer: an LLVM pass that stable Rust has too. Sanitizers need nightly; Rust's own checks
# (debug assertions, overflow) are on instead. With --target, build scripts stay without these flags.
export RUSTFLAGS="-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
-Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
-Ccodegen-units=1 --cfg fuzzing"
export CARGO_TARGET_DIR=$PWD/target
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
cargo build --locked --release --target "$host" "${bins[@]}"

for target in "${targets[@]}"; do
    corpus=corpus/$target
    mkdir -p "$corpus" "artifacts/$target"
    seeds=()
    [ ! -d "seeds/$target" ] || seeds=("seeds/$target")
    echo "== $target, $seconds s"
    # The same seed each time makes a short run repeatable; the corpus grows across runs.
    "target/$host/release/$target" -seed="${FUZZ_SEED:-1}" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 "$corpus" ${seeds[@]+"${seeds[@]}"}
done
