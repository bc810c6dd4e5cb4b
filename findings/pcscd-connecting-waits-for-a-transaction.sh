#!/usr/bin/env bash
# Packages: pcscd, libpcsclite1, libpcsclite-dev 1.9.9-2 and vsmartcard-vpcd 3.3+dfsg-2, Debian 12.
#
# While one program has a transaction with a card, others wait not only where they begin one. Opening
# the card shared (SCardConnect) waits for its end, too: in the client library, 100 ms at a time,
# without a limit, and nothing tells that it waits. SCardCancel ends only SCardGetStatusChange.
# Listing readers and letting a card go do not wait. So a program with a deadline has to connect on a
# thread that it can leave behind.
#
# Output seen (a transaction of 2 s, calls of another process begun 0.5 s after it):
#   SCardListReaders: at once
#   SCardConnect: waited for the end of the transaction
#   SCardDisconnect: at once
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get download -qq pcscd=1.9.9-2 libpcsclite1=1.9.9-2 libpcsclite-dev=1.9.9-2 \
    vsmartcard-vpcd=3.3+dfsg-2 2>log || { cat log; exit 1; }
for package in *.deb; do dpkg -x "$package" .; done
library=$PWD/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH=$library PCSCLITE_CSOCK_NAME=$PWD/socket

port=$((20000 + RANDOM % 20000))
cat >reader.conf <<C
FRIENDLYNAME "Virtual"
DEVICENAME /dev/null:$port
LIBPATH $PWD/$(echo usr/lib/pcsc/drivers/serial/libifdvpcd.so.*)
CHANNELID $port
C
# pcscd takes its socket as systemd would hand it over.
cat >start.py <<'P'
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["PCSCLITE_CSOCK_NAME"])
listener.listen(16)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv("usr/sbin/pcscd", ["pcscd", "--foreground", "--config", os.getcwd() + "/reader.conf"])
P
# As root it would take the place of the system's own, so it is nobody.
user=()
if [ "$(id -u)" = 0 ]; then
    user=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    chown -R 65534:65534 .
fi
PCSCLITE_HP_DROPDIR=$PWD "${user[@]}" /usr/bin/python3 start.py >pcscd.log 2>&1 &

# A card that answers 9000 to everything.
cat >card.py <<'P'
import socket, struct, sys, time
while True:
    try:
        card = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        break
    except OSError:
        time.sleep(0.05)
card.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    length, = struct.unpack(">H", card.recv(2, socket.MSG_WAITALL))
    message = card.recv(length, socket.MSG_WAITALL)
    reply = None
    if length > 1:
        reply = b"\x90\x00"
    elif message == b"\x04":
        reply = b"\x3b\x00"
    if reply is not None:
        card.sendall(struct.pack(">H", len(reply)) + reply)
P
/usr/bin/python3 card.py "$port" &

cat >program.c <<'C'
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <winscard.h>

static SCARDCONTEXT context;
static char reader[256];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int list(void) {
    DWORD length = sizeof reader;
    return SCardListReaders(context, NULL, reader, &length) == SCARD_S_SUCCESS;
}

static int open_card(SCARDHANDLE *card) {
    DWORD protocol;
    return SCardConnect(context, reader, SCARD_SHARE_SHARED, SCARD_PROTOCOL_T0 | SCARD_PROTOCOL_T1,
                        card, &protocol) == SCARD_S_SUCCESS;
}

static void start(void) {
    if (SCardEstablishContext(SCARD_SCOPE_SYSTEM, NULL, NULL, &context)) _exit(3);
}

static void say(const char *what, double begun, double end) {
    double took = now() - begun;
    if (took < 0.2) printf("%s: at once\n", what);
    else if (now() >= end - 0.1) printf("%s: waited for the end of the transaction\n", what);
    else printf("%s: %.1f s\n", what, took);
    fflush(stdout);
}

int main(void) {
    SCARDHANDLE card;
    int gate[2], from[2];
    char byte;
    /* A reader with a card is there. */
    start();
    for (double end = now() + 20; !(list() && open_card(&card)); usleep(100000))
        if (now() > end) return 2;
    SCardDisconnect(card, SCARD_LEAVE_CARD);
    SCardReleaseContext(context);

    for (int which = 0; which < 2; which++) {
        if (pipe(gate) || pipe(from)) return 2;
        pid_t other = fork();
        if (!other) {
            start();
            if (!list() || (which == 1 && !open_card(&card))) _exit(4);
            if (write(from[1], "r", 1) != 1 || read(gate[0], &byte, 1) != 1) _exit(5);
            usleep(500000);
            double begun = now(), end = begun + 1.5;
            if (which == 0) {
                list();
                say("SCardListReaders", begun, end);
                begun = now();
                open_card(&card);
                say("SCardConnect", begun, end);
            } else {
                SCardDisconnect(card, SCARD_LEAVE_CARD);
                say("SCardDisconnect", begun, end);
            }
            _exit(0);
        }
        SCARDHANDLE mine;
        start();
        if (!list() || !open_card(&mine) || read(from[0], &byte, 1) != 1) return 6;
        if (SCardBeginTransaction(mine)) return 7;
        if (write(gate[1], "g", 1) != 1) return 8;
        sleep(2);
        SCardEndTransaction(mine, SCARD_LEAVE_CARD);
        int status;
        waitpid(other, &status, 0);
        SCardDisconnect(mine, SCARD_LEAVE_CARD);
        SCardReleaseContext(context);
        if (status) return 9;
    }
    return 0;
}
C
gcc -o program program.c -Iusr/include/PCSC -L"$library" -l:libpcsclite.so.1
timeout 60 ./program >seen || { cat pcscd.log; exit 1; }
cat seen
diff seen - <<'SEEN'
SCardListReaders: at once
SCardConnect: waited for the end of the transaction
SCardDisconnect: at once
SEEN
