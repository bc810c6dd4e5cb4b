"""Runs Speculos for a test, with the app that the one argument names.

Speculos binds to every interface, on ports that one has to choose. Here each goes to
loopback, to a port that the system chooses; which one it is, is printed, and so is the
device that the app was built for. And it ends, with what it has started, when its standard
input does, that is, with the test, in whatever way that ends.
"""

import os
import signal
import socket
import sys
import threading

APDU, REST = 1, 2


def end_with_the_test():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


threading.Thread(target=end_with_the_test, daemon=True).start()

bind = socket.socket.bind


def bind_to_loopback(self, address):
    if self.family != socket.AF_INET:
        raise OSError("only IPv4 is bound to loopback here")
    bind(self, ("127.0.0.1", 0))
    name = {APDU: "APDU", REST: "REST"}[address[1]]
    print(f"\nport {name} {self.getsockname()[1]}\n", flush=True)


socket.socket.bind = bind_to_loopback

from elftools.elf.elffile import ELFFile  # noqa: E402
from speculos.main import main  # noqa: E402


def target_of(path):
    try:
        with open(path, "rb") as file:
            return ELFFile(file).get_section_by_name("ledger.target").data().decode().strip()
    except Exception:
        # Speculos says in its own words what is wrong with it.
        return None


print(f"\ntarget {target_of(sys.argv[1])}\n", flush=True)

sys.argv[1:1] = ["--display", "headless", "--apdu-port", str(APDU), "--api-port", str(REST)]
main()
