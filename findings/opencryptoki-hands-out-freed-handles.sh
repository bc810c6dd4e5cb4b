#!/usr/bin/env bash
# Packages: opencryptoki and libopencryptoki0 3.8.1+dfsg-3.2+b3 (its soft token), Debian 12.
#
# The next new object gets the handle of a destroyed object. A program that still holds the
# handle then works on another object and gets CKR_OK. PKCS#11 does not forbid it. SoftHSM2
# 2.6.1, NSS 3.87.1 and p11-kit 0.24.1 do not reuse handles.
#
# Output seen:
#   same handle: yes
#   label under the old handle: new
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

static CK_FUNCTION_LIST_PTR f;
static CK_SESSION_HANDLE session;

static CK_OBJECT_HANDLE object(char *label) {
    CK_OBJECT_CLASS class = CKO_DATA;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, label, 3}};
    CK_OBJECT_HANDLE handle = 0;
    CK_RV rv = f->C_CreateObject(session, template, 2, &handle);
    if (rv) printf("C_CreateObject: %#lx\n", rv);
    return handle;
}

int main(void) {
    char label[4] = "";
    CK_ATTRIBUTE asked = {CKA_LABEL, label, 3};
    if (!(f = load())) return 1;
    CK_RV rv = f->C_OpenSession(0, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session);
    if (rv) return printf("C_OpenSession: %#lx\n", rv), 1;
    CK_OBJECT_HANDLE old = object("old");
    f->C_DestroyObject(session, old);
    printf("same handle: %s\n", object("new") == old ? "yes" : "no");
    f->C_GetAttributeValue(session, old, &asked, 1);
    printf("label under the old handle: %s\n", label);
    return 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
as=$([ "$(id -u)" = 0 ] || echo --user --map-root-user)
unshare $as --mount --ipc --propagation private sh inside | tee said
diff - said <<'EXPECTED'
same handle: yes
label under the old handle: new
EXPECTED
