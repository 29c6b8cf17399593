"""The host names under which these pages are served.

A page of another site cannot read them, unless that site points its own name here ("DNS rebinding"): the browser then
considers them pages of that site. The name in the `Host` header reveals this.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from tornado.options import define

__all__ = ["OPTION", "hostname", "is_local", "is_named"]

#: Flower's option with this name, and `FLOWER_SAGAS_ALLOWED_HOSTS`, contain the allowed names.
OPTION = "sagas_allowed_hosts"

# Flower reads its environment before it reads the flowerconfig.py that may import this module.
define(
    OPTION,
    type=str,
    multiple=True,
    default=[name for name in os.environ.get(f"FLOWER_{OPTION.upper()}", "").split(",") if name.strip()],
    help='host names for the pages of sagas: "ops.example.com", ".example.com", or "*" for any',
)


def hostname(host: str) -> str:
    """Return the name in a `Host` header without its port; "" if there is none.

    >>> hostname("Ops.Example.com.:5555"), hostname("[::1]:5555")
    ('ops.example.com', '::1')
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_local(name: str) -> bool:
    """Return whether no other site can have this name: it is localhost or an IP address.

    >>> is_local("localhost"), is_local("192.168.1.7"), is_local("127.0.0.1.example.com")
    (True, True, False)
    """
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_named(name: str, allowed: Sequence[str]) -> bool:
    """Return whether a name is in the setting; ".example.com" matches the domain itself and all names below it.

    >>> is_named("ops.example.com", [".example.com"]), is_named("badexample.com", [".example.com"])
    (True, False)
    """
    for each in (pattern.strip().lower().removesuffix(".") for pattern in allowed):
        if name == each or (each.startswith(".") and (name.endswith(each) or name == each[1:])):
            return bool(name)
    return False
