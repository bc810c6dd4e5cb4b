#!/usr/bin/env bash
# Packages: p11-kit, p11-kit-modules and libp11-kit0 0.24.1-2, with SoftHSM2 2.6.1-2.1, Debian 12.
#
# A process that uses p11-kit-client does not find a restarted server: C_GetSlotList keeps
# returning CKR_DEVICE_ERROR (0x30). After C_Finalize and C_Initialize it works at once. The
# errors do not say so.
#
# Output seen:
#   at first: 0
#   ten times after the restart: 0x30
#   after C_Finalize and C_Initialize: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'kill -KILL -- "-$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

apt-get download -qq p11-kit=0.24.1-2 p11-kit-modules=0.24.1-2 libp11-kit0=0.24.1-2 \
    softhsm2=2.6.1-2.1 libsofthsm2=2.6.1-2.1 libp11-kit-dev=0.24.1-2 2>log || { cat log; exit 1; }
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

cat >program.c <<'C'
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
#include <p11-kit/pkcs11.h>

int main(int count, char **arguments) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_FUNCTION_LIST_PTR f;
    CK_ULONG slots;
    signal(SIGPIPE, SIG_IGN);
    void *module = dlopen(arguments[1], RTLD_NOW);
    if (!module) return printf("%s\n", dlerror()), 1;
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    f->C_Initialize(NULL);
    slots = 0;
    printf("at first: %#lx\n", f->C_GetSlotList(CK_TRUE, NULL, &slots));
    fflush(stdout);
    getchar();
    CK_RV seen = 0;
    int same = 1;
    for (int i = 0; i < 10; i++, usleep(100000)) {
        CK_RV rv = f->C_GetSlotList(CK_TRUE, NULL, &slots);
        same = same && (i == 0 || rv == seen);
        seen = rv;
    }
    printf("ten times after the restart: %#lx%s\n", seen, same ? "" : " at last");
    f->C_Finalize(NULL);
    f->C_Initialize(NULL);
    printf("after C_Finalize and C_Initialize: %#lx\n", f->C_GetSlotList(CK_TRUE, NULL, &slots));
    return 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
mkfifo go
./program "$client" <go >said &
program=$!
exec 3>go
until grep -q first said; do sleep 0.05; done
# The server, and what it has started for its client.
kill -KILL -- "-$server"
rm -f socket
serve
echo >&3
wait "$program"
cat said
diff - said <<'EXPECTED'
at first: 0
ten times after the restart: 0x30
after C_Finalize and C_Initialize: 0
EXPECTED
