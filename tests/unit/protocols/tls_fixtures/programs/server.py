"""A server with Python's ssl for one connection after another. Arguments: port, folder, alpn,... or -, answer bytes."""

import socket
import ssl
import sys

port, folder, alpn, size = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
if alpn != "-":
    context.set_alpn_protocols(alpn.split(","))
with socket.create_server(("127.0.0.1", int(port))) as listener:
    while True:
        plain, _ = listener.accept()
        try:
            with context.wrap_socket(plain, server_side=True) as tls:
                tls.recv(65536)
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % size.encode() + b"x" * int(size))
                tls.unwrap()
        except OSError:
            plain.close()
