"""The socket that a server listens on: one, which all its workers share.

Whoever is free takes the next connection, so that none waits behind a worker that is busy or dead,
and the socket is there as long as the server is. Sockets of their own on one port (SO_REUSEPORT)
would spread connections a little more evenly on Linux and not at all on macOS, would lose those
that a dead worker had not accepted yet, and would let a second server onto the port unnoticed.
"""

import socket
import ssl

from sliceserve.configs import HttpConfig


class ServerError(RuntimeError):
    """The server cannot start, or cannot go on; a sentence for the operator."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address, 0 being any free port, and does not listen yet. Raises
    ServerError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The protocol must be named for asyncio to switch Nagle's algorithm off.
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise cannot_listen(host, port, error) from error
    return sock


def inherit(fd: int) -> socket.socket:
    """The socket that another process has bound, from the descriptor that it passed on."""
    sock = socket.socket(fileno=fd)
    # Not every system tells the protocol.
    return socket.socket(sock.family, sock.type, socket.IPPROTO_TCP, fileno=sock.detach())


def url_of(sock: socket.socket, http: HttpConfig) -> str:
    name, port = sock.getsockname()[:2]
    scheme = "http" if http.ssl_certfile is None else "https"
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def expect_certificate(http: HttpConfig) -> None:
    """Raise ServerError unless the certificate and its key, where there is one, can be used."""
    if http.ssl_certfile is None:
        return

    def password() -> str:
        # Without it OpenSSL asks the terminal, and waits.
        raise ServerError(
            f"the key of {http.ssl_certfile} has a password; give one without, which only the "
            "server's user can read"
        )

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(http.ssl_certfile, http.ssl_keyfile, password)
    except OSError as error:
        files = " and ".join(name for name in (http.ssl_certfile, http.ssl_keyfile) if name)
        raise ServerError(
            f"cannot use the certificate in {files}: {error.strerror or error}; both must be in "
            "PEM, and belong together"
        ) from error


def cannot_listen(host: str, port: int, error: OSError) -> ServerError:
    return ServerError(
        f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port (0 takes "
        "any that is free) or host"
    )
