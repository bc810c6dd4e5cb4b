#!/usr/bin/env bash
# Packages: softhsm2 and libsofthsm2 2.6.1-2.1, Debian 12.
#
# On a full disk C_CopyObject returns CKR_OK for a copy that is not stored: its file stays empty, and
# every other process finds no such object. A key pair is refused. So a key that is copied to be
# renamed has to be read back before the original is destroyed.
#
# The disk is a tmpfs in a user namespace of its own.
#
# Output seen:
#   copy on a full disk: CKR_OK, empty files: 1, copies that another process finds: 0
#   key pair on a full disk: 0x6, empty files: 1, private keys that another process finds: 0
set -euo pipefail
script=$(realpath "$0")
if [ "${1-}" != inside ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    apt-get download -qq softhsm2=2.6.1-2.1 libsofthsm2=2.6.1-2.1 libp11-kit-dev=0.24.1-2 \
        2>log || { cat log; exit 1; }
    for package in *.deb; do dpkg -x "$package" .; done
    mkdir tokens
    unshare --user --map-root-user --mount bash "$script" inside
    exit
fi

module=$PWD/usr/lib/softhsm/libsofthsm2.so
mount -t tmpfs -o size=256k tmpfs tokens
echo "directories.tokendir = $PWD/tokens" >softhsm2.conf
export SOFTHSM2_CONF=$PWD/softhsm2.conf
usr/bin/softhsm2-util --module "$module" --init-token --free --label token \
    --pin 1234 --so-pin 12345678 >log

cat >program.c <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST_PTR f;
static CK_SESSION_HANDLE session;
static CK_BBOOL yes = CK_TRUE;

/* How many private keys have this label. */
static CK_ULONG keys(char *label, CK_OBJECT_HANDLE *found) {
    CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, label, strlen(label)}};
    CK_ULONG count = 0;
    if (f->C_FindObjectsInit(session, template, 2)) return 0;
    f->C_FindObjects(session, found, 9, &count);
    f->C_FindObjectsFinal(session);
    return count;
}

static CK_RV make(char *label) {
    CK_MECHANISM mechanism = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
    CK_BYTE p256[] = {6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7};
    CK_ATTRIBUTE public[] = {{CKA_TOKEN, &yes, 1}, {CKA_EC_PARAMS, p256, sizeof p256}};
    CK_ATTRIBUTE private[] = {
        {CKA_TOKEN, &yes, 1}, {CKA_SIGN, &yes, 1}, {CKA_LABEL, label, strlen(label)}};
    CK_OBJECT_HANDLE one, other;
    return f->C_GenerateKeyPair(session, &mechanism, public, 2, private, 3, &one, &other);
}

static CK_RV copy(char *from, char *to) {
    CK_OBJECT_HANDLE found[9];
    CK_ATTRIBUTE template[] = {{CKA_LABEL, to, strlen(to)}};
    if (keys(from, found) != 1) return CKR_OBJECT_HANDLE_INVALID;
    return f->C_CopyObject(session, found[0], template, 1, &found[1]);
}

int main(int count, char **arguments) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_SLOT_ID slots[9];
    CK_ULONG slot_count = 9;
    CK_OBJECT_HANDLE found[9];
    char *what = arguments[2];
    void *module = dlopen(arguments[1], RTLD_NOW);
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    if (f->C_Initialize(NULL) || f->C_GetSlotList(CK_TRUE, slots, &slot_count)) return 1;
    if (f->C_OpenSession(slots[0], CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session))
        return 2;
    if (f->C_Login(session, CKU_USER, (CK_UTF8CHAR *)"1234", 4)) return 3;
    if (!strcmp(what, "find")) return printf("%lu", keys(arguments[3], found)), 0;
    CK_RV result = !strcmp(what, "copy") ? copy("first", "copy") : make(arguments[3]);
    printf(result == CKR_OK ? "CKR_OK" : "%#lx", result);
    return 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
empty() { find tokens -name '*.object' -empty | wc -l; }
run() { ./program "$module" "$@"; }

[ "$(run make first)" = CKR_OK ]
[ "$(run find first)" = 1 ]
# Whatever room is left.
dd if=/dev/zero of=tokens/full bs=1k 2>>log || true
{
    echo "copy on a full disk: $(run copy), empty files: $(empty)," \
        "copies that another process finds: $(run find copy)"
    echo "key pair on a full disk: $(run make second), empty files: $(empty)," \
        "private keys that another process finds: $(run find second)"
} | tee said
diff - said <<'EXPECTED'
copy on a full disk: CKR_OK, empty files: 1, copies that another process finds: 0
key pair on a full disk: 0x6, empty files: 1, private keys that another process finds: 0
EXPECTED
