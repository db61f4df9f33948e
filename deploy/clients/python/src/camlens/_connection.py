"""Where a server is and how to reach it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from typing import Any

import grpc

DEFAULT_ADDRESS = "127.0.0.1:8033"
# Answers with several float maps of a large input exceed gRPC's 4 MiB.
_MOST_MESSAGE_BYTES = 1 << 30
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})")


@dataclasses.dataclass(frozen=True)
class Connection:
    """The settings of a connection.

    `address`: HOST:PORT, https://HOST:PORT for TLS, or unix:/PATH. Each field that is None is taken from the
    environment variable of the camlens command line, if that is set: CAMLENS_SERVER, CAMLENS_TLS_CA,
    CAMLENS_TLS_CERTIFICATE, CAMLENS_TLS_KEY, CAMLENS_TLS_SERVER_NAME, CAMLENS_TOKEN or the first token of
    CAMLENS_TOKEN_FILE.

    `ca`: PEM file of the authorities to trust; default: those of gRPC. With a `ca`, HOST:PORT means TLS too.
    `certificate`, `key`: PEM files of the client, for servers that ask for one (mutual TLS). `token`: sent with every
    call; never in plain text beyond this machine unless `insecure`.

    Raises ValueError when the settings contradict each other, OSError when a file cannot be read.
    """

    address: str | None = None
    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)
    insecure: bool | None = None
    #: Further channel arguments of gRPC, which win over the client's own.
    channel_options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        def default(name: str, value: Any) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        environment = os.environ
        # Only a `ca` that is given here turns HOST:PORT into TLS: the environment's may be meant for another address.
        is_ca_given = self.ca is not None
        default("address", environment.get("CAMLENS_SERVER") or DEFAULT_ADDRESS)
        default("ca", environment.get("CAMLENS_TLS_CA") or None)
        default("certificate", environment.get("CAMLENS_TLS_CERTIFICATE") or None)
        default("key", environment.get("CAMLENS_TLS_KEY") or None)
        default("server_name", environment.get("CAMLENS_TLS_SERVER_NAME") or None)
        default("token", environment.get("CAMLENS_TOKEN") or _first_token(environment.get("CAMLENS_TOKEN_FILE")))
        unset = environment.get("CAMLENS_INSECURE", "").lower() in ("", "0", "n", "no", "f", "false", "off")
        default("insecure", not unset)
        target, is_tls, is_local = _parse(str(self.address))
        if is_ca_given and not is_tls:
            if "://" in str(self.address) or target.startswith("unix:"):
                raise ValueError(f"ca is for a server with TLS, and {self.address} is plaintext: use https://HOST:PORT")
            is_tls = True
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: one of them is missing")
        if self.token and not (is_tls or is_local or self.insecure):
            raise ValueError(f"the token would be sent unencrypted to {self.address}: use https://HOST:PORT, or "
                             "insecure=True if the whole network is trusted")
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_is_tls", is_tls)

    @property
    def target(self) -> str:
        """The address as gRPC spells it."""
        return self._target  # type: ignore[attr-defined]

    @property
    def is_tls(self) -> bool:
        return self._is_tls  # type: ignore[attr-defined]

    def arguments(self) -> list[tuple[str, Any]]:
        """Channel arguments."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MOST_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MOST_MESSAGE_BYTES),
            # A peer that is gone without a word is noticed within half a minute.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # The client reconnects at its own pace: a channel shares neither connections nor waits with others.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.enable_retries", 0),
        ]
        if self.target.startswith("unix:"):
            # gRPC sends the socket's path as the authority, which HTTP/2 forbids.
            options.append(("grpc.default_authority", "localhost"))
        if self.is_tls and self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return options + list(self.channel_options)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """The credentials of TLS. None: plaintext."""
        if not self.is_tls:
            return None
        ca, key, certificate = (_read(path) for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def _parse(address: str) -> tuple[str, bool, bool]:
    """gRPC's target, whether the address asks for TLS, and whether it never leaves this machine."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path:
            raise ValueError(f"{address!r} names no socket: unix:/PATH")
        return f"unix:{path}", False, True
    scheme, _, rest = address.rpartition("://")
    found = _HOST_AND_PORT.fullmatch(rest.removesuffix("/"))
    if scheme not in ("", "http", "https") or not found or int(found["port"]) > 65535:
        raise ValueError(f"{address!r} is no address: HOST:PORT, https://HOST:PORT or unix:/PATH")
    host = found["host"].strip("[]")
    is_local = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
    return f"dns:{found[0]}" if ":" not in host else found[0], scheme == "https", is_local


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else pathlib.Path(path).read_bytes()


def _first_token(path: str | None) -> str | None:
    """The first token of a file of camlens: `TOKEN` or `NAME: TOKEN` per line, `#` begins a comment."""
    if not path:
        return None
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            return line.partition(":")[2].strip() if ":" in line else line
    return None
