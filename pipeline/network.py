"""Which of several machines this one is, by the addresses of its network cards.

torch asks the machine's own name instead, which on many leads to the loopback address: then nobody
would open the meeting place, and the others would be told an address that leads to themselves.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from llm_trainer.exceptions import ConfigurationError

DISCARD_PORT = 9
"""Nothing is sent to it."""

Address = tuple[socket.AddressFamily, str]


def addresses(host: str) -> list[Address]:
    """The addresses that `host` stands for, the preferred one first.

    Raises:
        ConfigurationError: nobody knows the name.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConfigurationError(
            f"runtime.rdzv_endpoint: {host} is not known on this machine ({error}); give an "
            f"address, or a name that all machines know"
        ) from None
    return [(family, str(place[0])) for family, _, _, _, place in found]


def is_here(found: Sequence[Address]) -> bool | None:
    """Whether any of the addresses belongs to this machine.

    None for a loopback address: that is a test with several launchers on one machine, of which the
    first is the one, as torch finds out itself.
    """
    import psutil

    if _is_loopback(found[0][1]):
        return None
    own = {
        each.address.partition("%")[0] for card in psutil.net_if_addrs().values() for each in card
    }
    return any(address in own for _, address in found)


def way_to(found: Sequence[Address]) -> tuple[str, str] | None:
    """Network card that leads to the first address, and this machine's own address there.

    None if that is this machine itself by a loopback address, or there is no way.
    """
    import psutil

    family, address = found[0]
    if _is_loopback(address):
        return None
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DISCARD_PORT))  # sends nothing, but chooses a card
        except OSError:
            return None  # whoever tries to meet says so
        own = str(probe.getsockname()[0])
    for name, card in psutil.net_if_addrs().items():
        if own in (each.address.partition("%")[0] for each in card):
            return name, own
    return None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
