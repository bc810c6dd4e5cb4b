#!/usr/bin/env bash
# Package: libnss3 2:3.87.1-1+deb12u4 (NSS softokn 3.87.1), Debian 12.
#
# C_GenerateKeyPair with the CKA_ID of an existing key pair replaces that pair and returns
# CKR_OK. The old key is lost, and its handle refers to the new key. PKCS#11 does not require
# unique CKA_IDs, and SoftHSM2 2.6.1 keeps both pairs.
#
# Output seen:
#   private keys with this CKA_ID after the first generation: 1
#   private keys with this CKA_ID after the second generation: 1
#   public keys with this CKA_ID: 1
#   same private handle: yes
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
static CK_BYTE id[] = "same id", p256[] = {6, 8, 42, 134, 72, 206, 61, 3, 1, 7};
static CK_BBOOL yes = CK_TRUE;

static unsigned long count(CK_OBJECT_CLASS class) {
    CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof class}, {CKA_ID, id, sizeof id}};
    CK_OBJECT_HANDLE found[9];
    CK_ULONG number = 0;
    f->C_FindObjectsInit(session, wanted, 2);
    f->C_FindObjects(session, found, 9, &number);
    f->C_FindObjectsFinal(session);
    return number;
}

static CK_OBJECT_HANDLE generate(void) {
    CK_MECHANISM mechanism = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
    CK_ATTRIBUTE public[] = {{CKA_TOKEN, &yes, 1}, {CKA_ID, id, sizeof id},
        {CKA_VERIFY, &yes, 1}, {CKA_EC_PARAMS, p256, sizeof p256}};
    CK_ATTRIBUTE private[] = {{CKA_TOKEN, &yes, 1}, {CKA_ID, id, sizeof id},
        {CKA_PRIVATE, &yes, 1}, {CKA_SENSITIVE, &yes, 1}, {CKA_SIGN, &yes, 1}};
    CK_OBJECT_HANDLE handles[2] = {0, 0};
    CK_RV rv = f->C_GenerateKeyPair(session, &mechanism, public, 4, private, 5,
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
    CK_OBJECT_HANDLE first = generate();
    const char *said = "private keys with this CKA_ID after the %s generation: %lu\n";
    printf(said, "first", count(CKO_PRIVATE_KEY));
    CK_OBJECT_HANDLE second = generate();
    printf(said, "second", count(CKO_PRIVATE_KEY));
    printf("public keys with this CKA_ID: %lu\n", count(CKO_PUBLIC_KEY));
    printf("same private handle: %s\n", first == second ? "yes" : "no");
    return 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program "$LD_LIBRARY_PATH/libsoftokn3.so" \
    -Wl,-rpath,"$LD_LIBRARY_PATH" -Wl,--allow-shlib-undefined
./program | tee said
diff - said <<'EXPECTED'
private keys with this CKA_ID after the first generation: 1
private keys with this CKA_ID after the second generation: 1
public keys with this CKA_ID: 1
same private handle: yes
EXPECTED
