#!/bin/sh
# The demonstration's certificates: an authority, and one identity per volume under it. Kept while they are good.
set -eu
umask 077

keyway pki --dir /pki/ca \
    --bridge bridge --host bridge \
    --client orders=spiffe://keyway.example/orders \
    --client operator=spiffe://keyway.example/ops/payments

for identity in bridge orders operator; do
    cp /pki/ca/ca.crt "/pki/$identity/ca.crt"
    cp "/pki/ca/$identity.crt" "/pki/$identity/tls.crt"
    cp "/pki/ca/$identity.key" "/pki/$identity/tls.key"
done
