#!/usr/bin/env bash
# Packages: p11-kit-modules and libp11-kit0 0.24.1-2, Debian 12.
#
# C_Initialize of p11-kit-client returns CKR_OK if no server listens at P11_KIT_SERVER_ADDRESS.
# The module has no slots, and only CK_INFO.libraryDescription says that there is no connection.
# If something listens and hangs up, C_Initialize returns CKR_DEVICE_ERROR (0x30). A program that
# relies on the return value shows its user a module without tokens.
#
# Output seen:
#   nobody listens: C_Initialize 0, 0 slots, "p11-kit (no connection)"
#   somebody hangs up: C_Initialize 0x30
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$listener" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

apt-get download -qq p11-kit-modules=0.24.1-2 libp11-kit0=0.24.1-2 libp11-kit-dev=0.24.1-2 \
    2>log || { cat log; exit 1; }
for package in *.deb; do dpkg -x "$package" .; done
libraries=$(echo "$PWD"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH=$libraries
export P11_KIT_SERVER_ADDRESS=unix:path=$PWD/socket

cat >program.c <<'C'
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <p11-kit/pkcs11.h>

int main(int count, char **arguments) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_FUNCTION_LIST_PTR f;
    signal(SIGPIPE, SIG_IGN);
    void *module = dlopen(arguments[1], RTLD_NOW);
    if (!module) return printf("%s\n", dlerror()), 1;
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    CK_RV rv = f->C_Initialize(NULL);
    printf("%s: C_Initialize %#lx", arguments[2], rv);
    if (!rv) {
        CK_ULONG slots = 99;
        CK_INFO info;
        if (f->C_GetSlotList(CK_FALSE, NULL, &slots) || f->C_GetInfo(&info)) return 1;
        int end = sizeof info.libraryDescription;
        while (end > 0 && info.libraryDescription[end - 1] == ' ') end--;
        printf(", %lu slots, \"%.*s\"", slots, end, (char *)info.libraryDescription);
    }
    printf("\n");
    return 0;
}
C
cat >listener.c <<'C'
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_un at = {AF_UNIX, "socket"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(s, (struct sockaddr *)&at, sizeof at) || listen(s, 4)) return 1;
    for (;;) close(accept(s, NULL, NULL));
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
cc listener.c -o listener
client=$libraries/pkcs11/p11-kit-client.so
./program "$client" "nobody listens" >said
./listener &
listener=$!
until test -S socket; do sleep 0.05; done
sleep 0.2
./program "$client" "somebody hangs up" >>said
cat said
diff - said <<'EXPECTED'
nobody listens: C_Initialize 0, 0 slots, "p11-kit (no connection)"
somebody hangs up: C_Initialize 0x30
EXPECTED
