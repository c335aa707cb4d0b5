"""ip, nft and resolvectl as far as the USB link uses them; the real ones are in the virtual machine."""

from __future__ import annotations

import json
import re


class Programs:
    """`broken` says what a program raises; the rest is what they would show."""

    def __init__(self) -> None:
        self.tables: dict[str, str] = {}
        self.addresses: list[str] = []
        self.up = False
        self.broken: dict[str, Exception] = {}
        self.log: list[str] = []

    def run(self, *words: str, stdin: str = "") -> str:
        self.log.append(" ".join(words))
        if words[0] in self.broken:
            raise self.broken[words[0]]
        match words:
            case ("nft", "-f", "-"):
                for verb, name in re.findall(r"^(delete table|table) inet (\w+)", stdin, re.MULTILINE):
                    if verb == "table":
                        self.tables[name] = stdin
                    else:
                        del self.tables[name]
            case ("ip", "-json", "address", "show", "dev", name):
                found = [each.split("/") for each in self.addresses]
                info = [{"family": "inet", "local": ip, "prefixlen": int(prefix)} for ip, prefix in found]
                info.append({"family": "inet6", "local": "fe80::1", "prefixlen": 64})
                flags = ["BROADCAST", *(["UP"] if self.up else [])]
                return json.dumps([{"ifname": name, "flags": flags, "addr_info": info}])
            case ("ip", "address", "add", address, "dev", _):
                self.addresses.append(address)
            case ("ip", "address", "delete", address, "dev", _):
                self.addresses.remove(address)
            case ("ip", "link", "set", _, "up"):
                self.up = True
            case ("resolvectl", "mdns", _, "yes"):
                pass
            case _:
                raise AssertionError(words)
        return ""
