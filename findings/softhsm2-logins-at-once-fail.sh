#!/usr/bin/env bash
# Packages: softhsm2 and libsofthsm2 2.6.1-2.1, Debian 12.
#
# If several processes log in to one token at the same moment, some fail although each PIN is
# right, and with misleading return values. A login rewrites the token's file, which is empty for
# a moment. A process that reads it then finds no token, or an unreadable one. No login fails if
# they run one after the other.
#
# Output seen:
#   one after the other: 0 of 200 failed
#   ten at once: some of 200 failed
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

apt-get download -qq softhsm2=2.6.1-2.1 libsofthsm2=2.6.1-2.1 libp11-kit-dev=0.24.1-2 \
    2>log || { cat log; exit 1; }
for package in *.deb; do dpkg -x "$package" .; done
module=$PWD/usr/lib/softhsm/libsofthsm2.so
mkdir tokens
echo "directories.tokendir = $PWD/tokens" >softhsm2.conf
export SOFTHSM2_CONF=$PWD/softhsm2.conf
usr/bin/softhsm2-util --module "$module" --init-token --free --label token \
    --pin 1234 --so-pin 12345678 >log

cat >program.c <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <p11-kit/pkcs11.h>

/* 0, or what said no: 1 there is no token, 2 no session, 3 the login. */
static int login(const char *path) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_FUNCTION_LIST_PTR f;
    CK_SLOT_ID slots[9];
    CK_ULONG count = 9;
    CK_SESSION_HANDLE session;
    void *module = dlopen(path, RTLD_NOW);
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    /* The slot behind the last token is always there, for a new one. */
    if (f->C_Initialize(NULL) || f->C_GetSlotList(CK_TRUE, slots, &count) || count < 2) return 1;
    if (f->C_OpenSession(slots[0], CKF_SERIAL_SESSION, NULL, NULL, &session)) return 2;
    return f->C_Login(session, CKU_USER, (CK_UTF8CHAR *)"1234", 4) ? 3 : 0;
}

int main(int count, char **arguments) {
    int at_once = atoi(arguments[2]), failed = 0;
    for (int round = 0; round < 200 / at_once; round++) {
        for (int i = 0; i < at_once; i++)
            if (!fork()) _exit(login(arguments[1]));
        for (int i = 0, status; i < at_once; i++) {
            wait(&status);
            failed += status != 0;
        }
    }
    return printf("%d\n", failed), 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
alone=$(./program "$module" 1)
together=$(./program "$module" 10)
echo "ten at once: $together of 200 failed" >&2
test "$together" -gt 0 && together=some
{
    echo "one after the other: $alone of 200 failed"
    echo "ten at once: $together of 200 failed"
} >said
cat said
diff - said <<'EXPECTED'
one after the other: 0 of 200 failed
ten at once: some of 200 failed
EXPECTED
