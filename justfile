# `just` lists these; `just ci` is what CI runs.

_default:
    @just --list

# Every test: installs what they need, builds the binaries, runs all (or `just test -p keyway-envelope`).
test *ARGS:
    ./test.sh {{ ARGS }}

# What CI runs: tests, lints, documentation, dependency policy, a short fuzz run, instruction counts.
ci:
    bash .ci/run

# Formatting and lints, as strict as CI.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Everything under load, in one report: target/bench-report (docs/benchmarking.md).
bench *ARGS: _bench-build
    "${CARGO_TARGET_DIR:-target}/release/keyway-bench" full {{ ARGS }}

# The most telling rows, in two minutes.
bench-smoke *ARGS: _bench-build
    "${CARGO_TARGET_DIR:-target}/release/keyway-bench" smoke {{ ARGS }}

# Criterion benches (`just bench-micro seal` for those whose name matches).
bench-micro *ARGS:
    cargo bench -p keyway-benches {{ ARGS }}

_bench-build:
    cargo build --release -p keyway-benches -p keyway -p keyway-bridge -p keyway-proxy --bins

# Instructions on the hot path, compared with the committed baseline (`--save` rewrites it, `--help` tells the rest).
bench-instructions *ARGS:
    benches/instructions/run.sh {{ ARGS }}

# The fuzz targets, or those that are named, each for so many seconds.
fuzz SECONDS="60" *TARGETS:
    fuzz/run.sh {{ SECONDS }} {{ TARGETS }}

# Everything in one process: bridge, proxy and an object store, with a `curl` to try.
dev *ARGS:
    cargo run --release -- dev {{ ARGS }}

# The container images, and the composed system under a rotation.
demo:
    deploy/demo.sh
