#!/bin/sh
# Installs what the load harness compares with. All of it is optional: what is missing is left out of a report.
# They go together: nginx-light is Debian's nginx without modules, and the Lua module is loaded by one of ours only where
# it is used.
set -eu

packages="nginx-light libnginx-mod-http-lua haproxy rclone stunnel4 spiped iproute2 util-linux"

[ "$(id -u)" = 0 ] || { echo "install-peers.sh: needs root: sudo $0" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "install-peers.sh: needs Debian's apt-get; install by hand: $packages" >&2; exit 1; }

export DEBIAN_FRONTEND=noninteractive
# The services themselves stay off: the harness starts its own, with its own configuration.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $packages
