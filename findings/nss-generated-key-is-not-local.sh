#!/usr/bin/env bash
# Package: libnss3 2:3.87.1-1+deb12u4 (NSS softokn 3.87.1), Debian 12.
#
# CKA_LOCAL is false on a private key that the token has just generated. PKCS#11 v2.40 (section
# 4.7.2) makes it true if and only if the key was generated on the token. The other attributes
# of protection are correct.
#
# Output seen:
#   CKA_LOCAL: 0
#   CKA_SENSITIVE: 1
#   CKA_EXTRACTABLE: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

apt-get download -qq libnss3=2:3.87.1-1+deb12u4 libnspr4=2:4.35-1 \
    libnss3-tools=2:3.87.1-1+deb12u4 libp11-kit-dev=0.24.1-2 2>log || { cat log; exit 1; }
for package in *.deb; do dpkg -x "$package" .; done
LD_LIBRARY_PATH=$(echo "$PWD"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH
mkdir db && echo secret-pin >pin
usr/bin/certutil -N -d sql:db -f pin

cat >program.c <<'C'
#include <stdio.h>
#include <string.h>
#include <p11-kit/pkcs11.h>

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR);
static CK_FUNCTION_LIST_PTR f;
static CK_SESSION_HANDLE session;
static CK_BYTE id[] = "an id", p256[] = {6, 8, 42, 134, 72, 206, 61, 3, 1, 7};
static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;

static void show(const char *name, CK_OBJECT_HANDLE key, CK_ATTRIBUTE_TYPE type) {
    CK_BBOOL value = 9;
    CK_ATTRIBUTE asked = {type, &value, 1};
    CK_RV rv = f->C_GetAttributeValue(session, key, &asked, 1);
    if (rv) printf("%s: %#lx\n", name, rv);
    else printf("%s: %d\n", name, value);
}

static CK_OBJECT_HANDLE generate(void) {
    CK_MECHANISM mechanism = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
    CK_ATTRIBUTE public[] = {{CKA_TOKEN, &yes, 1}, {CKA_ID, id, sizeof id},
        {CKA_VERIFY, &yes, 1}, {CKA_EC_PARAMS, p256, sizeof p256}};
    CK_ATTRIBUTE private[] = {{CKA_TOKEN, &yes, 1}, {CKA_ID, id, sizeof id},
        {CKA_PRIVATE, &yes, 1}, {CKA_SENSITIVE, &yes, 1}, {CKA_EXTRACTABLE, &no, 1},
        {CKA_SIGN, &yes, 1}};
    CK_OBJECT_HANDLE handles[2] = {0, 0};
    CK_RV rv = f->C_GenerateKeyPair(session, &mechanism, public, 4, private, 6,
        &handles[0], &handles[1]);
    if (rv != CKR_OK) printf("C_GenerateKeyPair: %#lx\n", rv);
    return handles[1];
}

int main(void) {
    CK_C_INITIALIZE_ARGS args;
    memset(&args, 0, sizeof args);
    args.flags = CKF_OS_LOCKING_OK;
    args.pReserved = "configDir='sql:db' certPrefix='' keyPrefix='' secmod='secmod.db'";
    C_GetFunctionList(&f);
    CK_RV rv = f->C_Initialize(&args);
    /* Slot 2 is the one with the database. */
    if (!rv) rv = f->C_OpenSession(2, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session);
    if (!rv) rv = f->C_Login(session, CKU_USER, (CK_UTF8CHAR *)"secret-pin", 10);
    if (rv) return printf("no session: %#lx\n", rv), 1;
    CK_OBJECT_HANDLE key = generate();
    show("CKA_LOCAL", key, CKA_LOCAL);
    show("CKA_SENSITIVE", key, CKA_SENSITIVE);
    show("CKA_EXTRACTABLE", key, CKA_EXTRACTABLE);
    return 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program "$LD_LIBRARY_PATH/libsoftokn3.so" \
    -Wl,-rpath,"$LD_LIBRARY_PATH" -Wl,--allow-shlib-undefined
./program | tee said
diff - said <<'EXPECTED'
CKA_LOCAL: 0
CKA_SENSITIVE: 1
CKA_EXTRACTABLE: 0
EXPECTED
