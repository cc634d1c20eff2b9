#!/usr/bin/env bash
# Brings docker-compose.yml up, lets the service trade, rotates its KEK, takes the bridge away for a while. Checks that
# no request failed, every order comes back, the old KEK is retired, and the store holds envelopes only.
#
#   deploy/demo.sh [--keep]       --keep leaves everything running
#
# BINARIES=prebuilt uses what deploy/prebuild.sh has built; otherwise the binaries are compiled in an image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

keep=false
case "${1:-}" in
  '') ;;
  --keep) keep=true ;;
  *) echo "usage: deploy/demo.sh [--keep]" >&2; exit 2 ;;
esac

export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-keyway-demo}"
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi

readonly wait_s_max=180
readonly orders=http://127.0.0.1:9000 store=http://127.0.0.1:7400 bridge=http://127.0.0.1:7201
work="$(mktemp -d)"

say() { printf '\n== %s\n' "$*"; }
die() { printf 'demo: FAILED: %s\n' "$*" >&2; exit 1; }

finish() {
  local code=$?
  if ((code != 0)); then
    "${compose[@]}" ps || true
    "${compose[@]}" logs --no-color --tail 40 || true
  fi
  if ! $keep; then "${compose[@]}" down --volumes --timeout 20 >/dev/null 2>&1 || true; fi
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT

# Polls until COMMAND succeeds: `await "what for" COMMAND…`.
await() {
  local what="$1" deadline=$((SECONDS + wait_s_max))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || die "waited $wait_s_max s for $what"
    sleep 0.5
  done
}

count() { curl -fsS "$orders/status" 2>/dev/null | jq -er ".$1"; }
reached() { local now; now="$(count "$1")" && ((now >= $2)); }
# Waits until a count has grown by so many.
more() { await "$2 more $1" reached "$1" $(($(count "$1") + $2)); }

nothing_failed() {
  local failed
  failed="$(count failed)" || die "the service does not answer"
  ((failed == 0)) || { curl -fsS "$orders/status" | jq .failures; die "$failed requests failed $1"; }
}

every_order_opens() {
  curl -fsS -X POST "$orders/audit" >"$work/audit"
  jq -e '.wrong == 0 and .archived > 0' "$work/audit" >/dev/null || { cat "$work/audit"; die "orders did not open $1"; }
  echo "$(jq .checked "$work/audit") orders read back, all as they were written"
}

# Each begins with the magic, and with the version of the KEK at offset 18.
store_holds_envelopes() {
  local name
  for name in archive-0 archive-5 archive-9; do
    curl -fsS "$store/objects/$name" -o "$work/object"
    [[ $(head -c 4 "$work/object" | od -An -tx1 | tr -d ' ') == fb4b5759 ]] || die "$name is stored without an envelope"
  done
  operator inspect - <"$work/object"
}

# What v1, v2, … have to be now.
keys_are() { # STATE…
  local expected
  expected="$(printf '%s\n' "$@" | jq -Rnc '[inputs]')"
  operator keys --json </dev/null >"$work/keys"
  jq -e --argjson expected "$expected" 'sort_by(.version) | map(.state) == $expected' "$work/keys" >/dev/null ||
    { cat "$work/keys"; die "the keys are not $*"; }
  jq -r '.[] | "\(.zone)/\(.keyring) v\(.version): \(.state), \(.live_deks) DEKs"' "$work/keys"
}

token_objects() {
  # shellcheck disable=SC2016  # the PIN is read inside the container
  "${compose[@]}" exec -T bridge sh -c \
    'pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --token-label payments --login --pin "$(cat /var/lib/keyway/pin)" --list-objects --type secrkey'
}

# Compose's own notes go where they do not mix with the answer.
operator() {
  "${compose[@]}" run --rm -T operator "$@" 2>"$work/operator" || { cat "$work/operator" >&2; return 1; }
}

sidecar_is_ready() {
  "${compose[@]}" exec -T orders-proxy curl -fsS -o /dev/null http://127.0.0.1:7300/readyz 2>/dev/null
}

say "building the images and starting"
"${compose[@]}" up --build --detach
await "the service's first orders" reached written 250
await "slow streams on their way" reached streams_open 2

say "before the rotation"
store_holds_envelopes
token_objects
keys_are primary
nothing_failed "before the rotation"
before="$(count written)"

say "rotating under load"
connections="$(count connections)"
operator rotate start --keyring payments/default --watch </dev/null
keys_are retired primary
during=$(($(count written) - before))
((during > 0)) || die "no traffic during the rotation"
nothing_failed "during the rotation"
[[ $(count connections) == "$connections" ]] || die "connections were lost during the rotation"
echo "$during orders written meanwhile, none failed, no connection lost"
every_order_opens "after the rotation"

say "slow streams that began before it, to their end"
more streams 2
nothing_failed "as the slow streams ended"

say "without the bridge"
"${compose[@]}" stop --timeout 20 bridge
more written 300
nothing_failed "while the bridge was gone"
every_order_opens "while the bridge was gone"
"${compose[@]}" start bridge
await "the bridge" curl -fsS -o /dev/null "$bridge/readyz"
more written 100
operator members </dev/null
nothing_failed "after the bridge came back"
echo "$(count written) orders written, $(count read) read, $(count streams) slow streams, $(count failed) failures"

# The service's connections end with its sidecar, so from here on only what is stored counts.
say "a new sidecar without the bridge"
"${compose[@]}" stop --timeout 20 bridge
"${compose[@]}" restart --timeout 30 orders-proxy
await "the sidecar to serve from its sealed keyring" sidecar_is_ready
every_order_opens "from the keyring on disk"

say "done"
