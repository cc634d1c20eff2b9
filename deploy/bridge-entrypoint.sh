#!/bin/sh
# Makes the SoftHSM token at the first start, then becomes the bridge.
#
# A token's PIN beside its token protects nothing: it is here so that the demonstration needs no set-up. With an HSM,
# mount its PIN file (SOFTHSM_PIN_FILE is then unused) and leave SOFTHSM_TOKEN empty.
set -eu
umask 077

token="${SOFTHSM_TOKEN-payments}"
pin_file="${SOFTHSM_PIN_FILE:-/var/lib/keyway/pin}"

random_digits() { od -An -N8 -tu8 /dev/urandom | tr -d ' \n'; }

# The PIN is written before the token: a start that was cut in between finds the PIN and makes the token with it.
if [ -n "$token" ]; then
    mkdir -p /var/lib/keyway/softhsm
    if [ ! -s "$pin_file" ]; then
        random_digits >"$pin_file.new"
        mv "$pin_file.new" "$pin_file"
    fi
    if ! softhsm2-util --show-slots | grep -Eq "^ *Label: *$token *\$"; then
        # Nobody needs the security officer again: his PIN is not kept.
        softhsm2-util --init-token --free --label "$token" --so-pin "$(random_digits)" --pin "$(cat "$pin_file")"
    fi
fi

exec "$@"
