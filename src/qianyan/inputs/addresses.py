"""Which network addresses a URL sent by someone else may lead to.

Only ordinary public addresses: nothing private, local, reserved, or that wraps an IPv4 address in
an IPv6 one (mapped, NAT64, 6to4, Teredo), because a translator behind it would reach anywhere.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

IPAddress = IPv4Address | IPv6Address

# Stated here besides `is_global`, whose tables differ between Python releases.
_REFUSED_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared with carriers; a cloud's metadata service lives here
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's metadata service, on a public address
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
# All public IPv6 is inside 2000::/3: mapped, compatible, NAT64, unique local, link local and
# multicast addresses are outside.
_PUBLIC_IPV6 = IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # Teredo and other protocol assignments
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
        ),
    )
)
_HOST_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the open internet and to nothing else."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _REFUSED_IPV4)
    return (
        address.scope_id is None
        and address in _PUBLIC_IPV6
        and address.is_global
        and not any(address in network for network in _REFUSED_IPV6)
    )


def find_literal(host: str) -> IPAddress | None:
    """Read a host that is an address in its one canonical writing, without brackets."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_hostname(host: str) -> bool:
    """Whether a lower-case ASCII host is a name, and no address in disguise.

    Names that end in a number (2130706433, 0x7f.1, 127.1) are what resolvers quietly read as
    IPv4 addresses; no real name does.
    """
    labels = host.removesuffix(".").split(".")
    return (
        len(host) <= 253
        and all(len(label) <= 63 and _HOST_LABEL.fullmatch(label) for label in labels)
        and not _NUMBER.fullmatch(labels[-1])
    )
