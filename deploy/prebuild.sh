#!/usr/bin/env bash
# Builds the release binaries here and puts them where the images take them from with BINARIES=prebuilt. Wants a C library
# no newer than the images' (Debian 12: glibc 2.36).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --locked -p keyway -p keyway-proxy -p keyway-bridge
install -d deploy/bin
install -m 0755 -t deploy/bin "${CARGO_TARGET_DIR:-target}"/release/{keyway,keyway-proxy,keyway-bridge}
# Symbols stay, so that a backtrace has names.
strip --strip-debug deploy/bin/*
