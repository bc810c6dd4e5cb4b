#!/usr/bin/env bash
# Packages: opencryptoki and libopencryptoki0 3.8.1+dfsg-3.2+b3 (its soft token), Debian 12.
#
# C_GetTokenInfo sets CKF_CLOCK_ON_TOKEN and returns utcTime as "HH:MM:SS" and eight zero bytes.
# PKCS#11 v2.40 (section 3.2) specifies the 16 characters YYYYMMDDhhmmssxx. A program that
# parses the specified format fails on the whole token.
#
# Output seen:
#   clock on token: yes
#   utcTime: ##:##:## and 8 zero bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

apt-get download -qq opencryptoki=3.8.1+dfsg-3.2+b3 libopencryptoki0=3.8.1+dfsg-3.2+b3 \
    libitm1=12.2.0-14+deb12u1 libp11-kit-dev=0.24.1-2 2>log || { cat log; exit 1; }
for package in *.deb; do dpkg -x "$package" .; done

# Its paths are compiled in: it gets a view of the system of its own, with one soft token.
mkdir -p etc/opencryptoki
printf "%s\n" "version opencryptoki-3.1" "slot 0" { "stdll = libpkcs11_sw.so" } \
    >etc/opencryptoki/opencryptoki.conf
{ grep -v ^pkcs11: /etc/group; echo pkcs11:x:0:root; } >etc/group
cat >inside <<'INSIDE'
set -e
mount -t overlay -o "lowerdir=$PWD/usr:/usr" overlay /usr
mount -t overlay -o "lowerdir=$PWD/etc:/etc" overlay /etc
mount -t overlay -o "lowerdir=$PWD/var/lib:/var/lib" overlay /var/lib
for place in /run /dev/shm /var/lib/opencryptoki; do mount -t tmpfs tmpfs $place; done
mkdir -p /run/lock/opencryptoki/swtok /var/lib/opencryptoki/swtok/TOK_OBJ
pkcsslotd
for _ in $(seq 500); do
    test -S /run/pkcsslotd.socket && test -s /run/pkcsslotd.pid && break
    sleep 0.01
done
status=0
./program || status=$?
kill "$(cat /run/pkcsslotd.pid)"
exit $status
INSIDE

cat >program.c <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST_PTR load(void) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_FUNCTION_LIST_PTR f = NULL;
    void *module = dlopen("libopencryptoki.so.0", RTLD_NOW);
    if (!module) return printf("%s\n", dlerror()), NULL;
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    CK_RV rv = f->C_Initialize(NULL);
    return rv ? printf("C_Initialize: %#lx\n", rv), NULL : f;
}

int main(void) {
    CK_TOKEN_INFO info;
    CK_FUNCTION_LIST_PTR f = load();
    if (!f || f->C_GetTokenInfo(0, &info)) return 1;
    printf("clock on token: %s\n", info.flags & CKF_CLOCK_ON_TOKEN ? "yes" : "no");
    int zeros = 0;
    printf("utcTime: ");
    for (unsigned i = 0; i < sizeof info.utcTime; i++) {
        unsigned char c = info.utcTime[i];
        if (c == 0) zeros++;
        else putchar(c >= '0' && c <= '9' ? '#' : c);
    }
    printf(" and %d zero bytes\n", zeros);
    return 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
as=$([ "$(id -u)" = 0 ] || echo --user --map-root-user)
unshare $as --mount --ipc --propagation private sh inside | tee said
diff - said <<'EXPECTED'
clock on token: yes
utcTime: ##:##:## and 8 zero bytes
EXPECTED
