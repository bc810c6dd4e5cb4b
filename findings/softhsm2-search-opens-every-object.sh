#!/usr/bin/env bash
# Packages: softhsm2 and libsofthsm2 2.6.1-2.1, Debian 12.
#
# A search opens the file of every object on the token each time, whatever its template asks for:
# also of objects that the same session found before and nobody changed since. So a search by
# CKA_ID takes time in proportion to all objects of the token. An object handle that is kept costs
# no search.
#
# Output seen:
#   20 objects, second search for one of them: 20 files opened
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
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST_PTR f;
static CK_SESSION_HANDLE session;

/* How many objects have this label. */
static CK_ULONG search(char *label) {
    CK_ATTRIBUTE template = {CKA_LABEL, label, strlen(label)};
    CK_OBJECT_HANDLE found[9];
    CK_ULONG count = 0;
    if (f->C_FindObjectsInit(session, &template, 1)) return 0;
    f->C_FindObjects(session, found, 9, &count);
    f->C_FindObjectsFinal(session);
    return count;
}

int main(int count, char **arguments) {
    CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
    CK_SLOT_ID slots[9];
    CK_ULONG slot_count = 9;
    CK_OBJECT_CLASS class = CKO_DATA;
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_OBJECT_HANDLE made;
    char label[9], events[65536];
    int objects = 0;
    void *module = dlopen(arguments[1], RTLD_NOW);
    list = (CK_RV (*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(module, "C_GetFunctionList");
    list(&f);
    if (f->C_Initialize(NULL) || f->C_GetSlotList(CK_TRUE, slots, &slot_count)) return 1;
    if (f->C_OpenSession(slots[0], CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session))
        return 2;
    if (f->C_Login(session, CKU_USER, (CK_UTF8CHAR *)"1234", 4)) return 3;
    for (int i = 0; i < 20; i++) {
        snprintf(label, sizeof label, "data-%d", i);
        CK_ATTRIBUTE template[] = {
            {CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &yes, sizeof yes},
            {CKA_PRIVATE, &no, sizeof no},     {CKA_LABEL, label, strlen(label)},
            {CKA_VALUE, label, strlen(label)},
        };
        if (f->C_CreateObject(session, template, 5, &made)) return 4;
    }
    if (search("data-7") != 1) return 5;
    int watch = inotify_init1(IN_NONBLOCK);
    if (inotify_add_watch(watch, arguments[2], IN_OPEN) < 0) return 6;
    if (search("data-7") != 1) return 7;
    ssize_t length = read(watch, events, sizeof events);
    for (ssize_t at = 0; at < length;) {
        struct inotify_event *event = (struct inotify_event *)(events + at);
        if (event->len && strstr(event->name, ".object") && strcmp(event->name, "token.object"))
            objects++;
        at += sizeof *event + event->len;
    }
    return printf("20 objects, second search for one of them: %d files opened\n", objects), 0;
}
C
cc -Iusr/include/p11-kit-1 program.c -o program -ldl
./program "$module" "$(echo "$PWD"/tokens/*)" >said
cat said
diff - said <<'EXPECTED'
20 objects, second search for one of them: 20 files opened
EXPECTED
