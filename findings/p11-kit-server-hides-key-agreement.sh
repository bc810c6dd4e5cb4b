#!/usr/bin/env bash
# Packages: p11-kit, p11-kit-modules and libp11-kit0 0.24.1-2, with SoftHSM2 2.6.1-2.1, Debian 12.
#
# The token offers key agreement (ECDH1-DERIVE), but not through p11-kit's server and client.
# They silently leave out mechanisms whose parameters they cannot send.
#
# Output seen:
#   SoftHSM2 itself: ECDH1-DERIVE ECDSA
#   behind p11-kit server: ECDSA
set -euo pipefail
folder=$(mktemp -d)
trap 'kill -KILL -- "-$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

apt-get download -qq p11-kit=0.24.1-2 p11-kit-modules=0.24.1-2 libp11-kit0=0.24.1-2 \
    softhsm2=2.6.1-2.1 libsofthsm2=2.6.1-2.1 opensc=0.23.0-0.3+deb12u2 \
    opensc-pkcs11=0.23.0-0.3+deb12u2 2>log || { cat log; exit 1; }
for package in *.deb; do dpkg -x "$package" .; done
libraries=$(echo "$PWD"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH=$libraries P11_KIT_PRIVATEDIR=$PWD/usr/libexec/p11-kit
module=$PWD/usr/lib/softhsm/libsofthsm2.so client=$libraries/pkcs11/p11-kit-client.so

mkdir tokens
echo "directories.tokendir = $PWD/tokens" >softhsm2.conf
export SOFTHSM2_CONF=$PWD/softhsm2.conf
usr/bin/softhsm2-util --module "$module" --init-token --free --label token \
    --pin 1234 --so-pin 12345678 >log
serve() {
    setsid usr/libexec/p11-kit/p11-kit-server --foreground --sh \
        --name "$PWD/socket" --provider "$module" pkcs11: >log 2>&1 &
    server=$!
    disown
    until grep -q ADDRESS log; do sleep 0.05; done
}
export P11_KIT_SERVER_ADDRESS=unix:path=$PWD/socket
serve

mechanisms() {
    usr/bin/pkcs11-tool --module "$1" --token-label token --list-mechanisms 2>/dev/null |
        grep -oE '^ *(ECDSA|ECDH1-DERIVE),' | tr -d ' ,' | sort | tr '\n' ' ' | sed 's/ $//'
}
{
    echo "SoftHSM2 itself: $(mechanisms "$module")"
    echo "behind p11-kit server: $(mechanisms "$client")"
} | tee said
diff - said <<'EXPECTED'
SoftHSM2 itself: ECDH1-DERIVE ECDSA
behind p11-kit server: ECDSA
EXPECTED
