"""Sign a file with an identity of a running `claviger serve`, and print the signature.

python3 sign.py DESCRIPTORS SOCKET IDENTITY FILE

It needs `protobuf` from PyPI, and the descriptors of the messages:
cargo run -p claviger-client --example descriptors > claviger.pb
"""
import getpass
import socket
import struct
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def frame_class(path):
    pool = descriptor_pool.DescriptorPool()
    with open(path, "rb") as file:
        for each in descriptor_pb2.FileDescriptorSet.FromString(file.read()).file:
            pool.Add(each)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("claviger.v1.Frame"))


def send(connection, frame):
    data = frame.SerializeToString()
    connection.sendall(struct.pack(">I", len(data)) + data)


def receive(stream, frame):
    (length,) = struct.unpack(">I", stream.read(4))
    if length > 1 << 20:
        sys.exit(f"a frame of {length} bytes")
    return frame.FromString(stream.read(length))


def main(descriptors, path, identity, file):
    frame = frame_class(descriptors)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    stream = connection.makefile("rb")
    send(connection, frame(hello={"version": 1, "program": "sign.py", "answers_pins": True}))
    print("home", receive(stream, frame).hello.home_id, file=sys.stderr)
    with open(file, "rb") as text:
        request = {"data": text.read(), "purpose": {"raw": True}}
    target = {"name": f"{identity}_committer_{identity}"}
    send(connection, frame(id=1, engine={"target": target, "request_commitment": request}))
    while True:
        reply = receive(stream, frame)
        match reply.WhichOneof("content"):
            case "pin_request":
                pin = getpass.getpass(f"PIN of {reply.pin_request.label}: ")
                send(connection, frame(id=1, pin_answer={"pin": pin.encode()}))
            case "error":
                sys.exit(f"{reply.error.code}: {reply.error.message}")
            case "engine":
                answer = reply.engine.reply_commitment
                if answer.HasField("err"):
                    sys.exit(f"{answer.err.code}: {answer.err.message}")
                return print(answer.commitment.scheme, answer.commitment.bytes.hex())


main(*sys.argv[1:])
