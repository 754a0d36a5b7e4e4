"""TLS clients that wait for an answer inside a read of the library's, whose arguments they tell beforehand.

    python -m tests.live.clients.waiting PORT FUNCTION [LIBSSL LIBCRYPTO]

FUNCTION is SSL_read, SSL_read_ex, gnutls_record_recv or gnutls_record_recv_seq; the library is the system's unless
others are named. Asks for /held/1, prints one JSON line (the handle, the buffer, where the count goes or 0, its address
and port), reads, and prints what it read. Does so again, for /held/2 and so on, after each line of its standard input.
With SSL_write or gnutls_record_send it does not read but writes on and on, until the server takes no more.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import json
import socket
import sys
from typing import Any

_SIZE = 65536


def _openssl(libssl: str, libcrypto: str, connected: socket.socket) -> tuple[Any, int]:
    ctypes.CDLL(libcrypto, mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(libssl)
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    context = library.SSL_CTX_new(ctypes.c_void_p(library.TLS_client_method()))
    handle = library.SSL_new(ctypes.c_void_p(context))
    library.SSL_set_fd(ctypes.c_void_p(handle), connected.fileno())
    if library.SSL_connect(ctypes.c_void_p(handle)) != 1:
        sys.exit("no handshake")
    return library, handle


def _gnutls(connected: socket.socket) -> tuple[Any, int]:
    library = ctypes.CDLL(ctypes.util.find_library("gnutls"))
    credentials, session = ctypes.c_void_p(), ctypes.c_void_p()
    library.gnutls_certificate_allocate_credentials(ctypes.byref(credentials))
    library.gnutls_init(ctypes.byref(session), 2)  # GNUTLS_CLIENT
    library.gnutls_set_default_priority(session)
    library.gnutls_credentials_set(session, 1, credentials)  # GNUTLS_CRD_CERTIFICATE
    library.gnutls_transport_set_int2(session, connected.fileno(), connected.fileno())
    if library.gnutls_handshake(session) != 0:
        sys.exit("no handshake")
    return library, session.value or 0


def main() -> None:
    """Ask, tell, read."""
    port, function, *libraries = sys.argv[1:]
    connected = socket.create_connection(("127.0.0.1", int(port)))
    gnutls = function.startswith("gnutls")
    library, handle = (
        _gnutls(connected) if gnutls else _openssl(*(libraries or ("libssl.so.3", "libcrypto.so.3")), connected)
    )
    write, read = library.gnutls_record_send if gnutls else library.SSL_write, getattr(library, function)
    read.restype = ctypes.c_ssize_t if gnutls else ctypes.c_int
    session, buffer, count = ctypes.c_void_p(handle), ctypes.create_string_buffer(_SIZE), ctypes.c_size_t()
    for number in itertools.count(1):
        request = b"GET /held/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number
        write(session, request, ctypes.c_size_t(len(request)))
        counted = function == "SSL_read_ex"
        told = (handle, ctypes.addressof(buffer), ctypes.addressof(count) if counted else 0)
        print(json.dumps([*told, *connected.getsockname()]), flush=True)
        while function in {"SSL_write", "gnutls_record_send"}:
            write(session, buffer, ctypes.c_size_t(_SIZE))
        answer = b""
        while not answer.endswith(b"/held/%d" % number):
            moved = (
                read(session, buffer, ctypes.c_size_t(_SIZE), ctypes.byref(count))
                if function in {"SSL_read_ex", "gnutls_record_recv_seq"}
                else read(session, buffer, ctypes.c_size_t(_SIZE))
            )
            moved = count.value if counted and moved == 1 else moved
            if moved <= 0 and moved != -28:  # GNUTLS_E_AGAIN: a session ticket came
                sys.exit("no answer")
            answer += buffer.raw[: max(moved, 0)]
        print(json.dumps(answer.decode()), flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
