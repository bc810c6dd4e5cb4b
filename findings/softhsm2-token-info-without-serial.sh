#!/usr/bin/env bash
# Packages: softhsm2 and libsofthsm2 2.6.1-2.1, Debian 12.
#
# If a token is deleted while another program calls C_GetTokenInfo, the call can return CKR_OK with
# the label of the token and a blank serial number. A program that identifies tokens by serial then
# sees a token that never existed.
#
# Output seen:
#   CKR_OK with a label and a blank serial: at least once in 400 deletions
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
cp -r tokens saved

cat >program.c <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <p11-kit/pkcs11.h>

/* Reads the token in the first slot until there is none; exits with 0 if it once had a label
   and no serial. */
int main(int count, char **arguments) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_FUNCTION_LIST_PTR f;
    CK_SLOT_ID slots[9];
    CK_ULONG slot_count = 9;
    CK_TOKEN_INFO token;
    void *module = dlopen(arguments[1], RTLD_NOW);
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    if (f->C_Initialize(NULL) || f->C_GetSlotList(CK_TRUE, slots, &slot_count)) return 2;
    puts("ready");
    fflush(stdout);
    while (!f->C_GetTokenInfo(slots[0], &token) && (token.flags & CKF_TOKEN_INITIALIZED)) {
        int labelled = !memcmp(token.label, "token ", 6);
        int serial = strspn((char *)token.serialNumber, " ") < 16 && token.serialNumber[0];
        if (labelled && !serial) return 0;
    }
    return 1;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
seen=never
for round in $(seq 400); do
    rm -rf tokens && cp -r saved tokens
    coproc READER { ./program "$module"; }
    reader=$READER_PID
    read -r _ <&"${READER[0]}"
    usr/bin/softhsm2-util --module "$module" --delete-token --token token >log
    if wait "$reader"; then
        echo "seen at deletion $round" >&2
        seen="at least once in 400 deletions"
        break
    fi
done
echo "CKR_OK with a label and a blank serial: $seen" >said
cat said
diff - said <<'EXPECTED'
CKR_OK with a label and a blank serial: at least once in 400 deletions
EXPECTED
