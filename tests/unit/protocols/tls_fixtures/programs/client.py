"""One request by Python's ssl; prints what the session agreed on. Arguments: port, sni or -, alpn,... or -, version."""

import json
import socket
import ssl
import sys

port, sni, alpn, version = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
if alpn != "-":
    context.set_alpn_protocols(alpn.split(","))
with (
    socket.create_connection(("127.0.0.1", int(port))) as plain,
    context.wrap_socket(plain, server_hostname=None if sni == "-" else sni) as tls,
):
    tls.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
    while tls.recv(65536):
        pass
    cipher = tls.cipher()
    assert cipher is not None
    print(json.dumps({"version": tls.version(), "cipher": cipher[0], "alpn": tls.selected_alpn_protocol()}))
