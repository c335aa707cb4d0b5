"""Where everything is on disk: one object, so that the same code runs on the appliance, under `make run` and in tests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: Longest path of a UNIX socket on Linux, the closing NUL not counted (unix(7), sun_path).
SOCKET_PATH_LIMIT_BYTES = 107


@dataclass(frozen=True)
class Paths:
    """`etc` is what the owner sets, `state` what must survive, `run` what must not; below `root` is the machine's own."""

    etc: Path
    state: Path
    run: Path
    root: Path = Path("/")

    @classmethod
    def system(cls, root: Path = Path("/")) -> Paths:
        """The appliance's own folders, below `root`."""
        return cls(root / "etc/coral-reef", root / "var/lib/coral-reef", root / "run/coral-reef", root)

    @classmethod
    def under(cls, state: Path) -> Paths:
        """Everything below one folder: what `make run` uses."""
        state = state.absolute()
        return cls(state / "etc", state, state / "run")

    @classmethod
    def from_environment(cls) -> Paths:
        """`CORAL_REEF_STATE` names the folder of `under`; without it, the appliance's own folders."""
        state = os.environ.get("CORAL_REEF_STATE")
        return cls.under(Path(state)) if state else cls.system()

    @property
    def appliance_toml(self) -> Path:
        return self.etc / "appliance.toml"

    @property
    def network_yaml(self) -> Path:
        return self.etc / "network.yaml"

    @property
    def supervisor(self) -> Path:
        """The supervisor's own folder: under systemd each process has one, and none can write into another's."""
        return self.run / "supervisor"

    @property
    def control_socket(self) -> Path:
        return self.supervisor / "control.sock"

    @property
    def doctor_socket(self) -> Path:
        """Where systemd starts the doctor of the network for who connects."""
        return self.run / "doctor.sock"

    @property
    def workers(self) -> Path:
        """One folder a worker: its socket and its engine's own."""
        return self.run / "workers"

    @property
    def lock(self) -> Path:
        return self.supervisor / "lock"

    @property
    def launcher_lock(self) -> Path:
        """Held by `coral-reef run`; `lock` is the supervisor's."""
        return self.state / "run.lock"

    @property
    def log_file(self) -> Path:
        """What `coral-reef run` and its parts said; on a tower it is in the journal."""
        return self.state / "logs/coral-reef.log"

    @property
    def console_history(self) -> Path:
        """What was typed on the console, a file a user."""
        return self.state / "console-history"

    @property
    def console_line(self) -> Path:
        """Leads to the terminal that the console of `coral-reef run` is on."""
        return self.state / "console"

    @property
    def database(self) -> Path:
        return self.state / "coral-reef.db"

    @property
    def database_key(self) -> Path:
        return self.state / "db.key"

    @property
    def admin_key(self) -> Path:
        return self.state / "admin.key"

    @property
    def models(self) -> Path:
        """The owner's own models."""
        return self.state / "models"

    @property
    def model_choice(self) -> Path:
        """Which model `coral-reef model load` chose last; none when appliance.toml decides. The folder is the supervisor's."""
        return self.state / "supervisor/model.json"

    @property
    def users(self) -> Path:
        """Who may log in on a serial line."""
        return self.state / "supervisor/users.json"

    @property
    def network_state(self) -> Path:
        """What was in effect before, and what is being changed."""
        return self.state / "supervisor/network"

    @property
    def firewall_record(self) -> Path:
        """Which rules were loaded last; the kernel forgets them when we do."""
        return self.supervisor / "firewall.json"

    @property
    def tpu_quarantine(self) -> Path:
        """Which TPUs are not to be used, and why."""
        return self.state / "supervisor/tpu-quarantine.json"

    @property
    def device_key(self) -> Path:
        """The appliance's own key, by which others know it."""
        return self.state / "device.key"

    @property
    def usb_link(self) -> Path:
        """What the gadget's service says of the USB port; the folder is its own."""
        return self.run / "gadget/link.json"

    @property
    def usb_dhcp(self) -> Path:
        """dnsmasq's configuration."""
        return self.run / "gadget/dnsmasq.conf"

    @property
    def usb_announcement(self) -> Path:
        """What systemd-resolved tells a desktop by mDNS; systemd.dnssd(5)."""
        return self.root / "run/systemd/dnssd/coral-reef.dnssd"

    @property
    def machine_id(self) -> Path:
        return self.root / "etc/machine-id"

    @property
    def gadgets(self) -> Path:
        """Where the kernel takes descriptions of USB gadgets; there only when the module libcomposite is loaded."""
        return self.root / "sys/kernel/config/usb_gadget"

    @property
    def usb_controllers(self) -> Path:
        """The USB device controllers."""
        return self.root / "sys/class/udc"

    @property
    def interfaces(self) -> Path:
        """The network interfaces."""
        return self.root / "sys/class/net"

    def sockets_fit(self) -> bool:
        """Whether the longest socket path that we make fits into a UNIX socket's address."""
        longest = self.workers / ("x" * 32) / "engine.sock"
        return len(os.fsencode(longest)) <= SOCKET_PATH_LIMIT_BYTES
