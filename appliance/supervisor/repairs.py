"""Repairs: what the owner should know and may have to do, as Home Assistant's resolution centre keeps it.

Whoever notices a trouble opens a repair and closes it when it is over. Nothing is stored: a supervisor that starts finds again
what is still wrong.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from appliance.wire.messages import Repair, Severity

from .errors import NoSuchRepair, NotFixable

Fix = Callable[[], Awaitable[str]]


class Kind(StrEnum):
    """What can be wrong."""

    CONFIGURATION_REFUSED = "configuration_refused"
    CONFIGURATION_WARNING = "configuration_warning"
    FIREWALL_OFF = "firewall_off"
    MODE_NOT_IN_EFFECT = "mode_not_in_effect"
    MODEL_UNUSABLE = "model_unusable"
    ADAPTER_UNUSABLE = "adapter_unusable"
    MODEL_ASTRAY = "model_astray"
    MODELS_NOT_COMPILED = "models_not_compiled"
    SMALL_MODEL_UNUSABLE = "small_model_unusable"
    NETWORK_DRIFT = "network_drift"
    NETWORK_MANAGER_MISSING = "network_manager_missing"
    NETWORK_NOT_APPLIED = "network_not_applied"
    NETWORK_UNFINISHED = "network_unfinished"
    PORT_GUESSED = "port_guessed"
    PORT_MISSING = "port_missing"
    TPU_LIBRARY = "tpu_library"
    TPU_BOOT_LOADER = "tpu_boot_loader"
    TPU_DRIVER = "tpu_driver"
    TPU_HOT = "tpu_hot"
    TPU_NODE = "tpu_node"
    TPU_OFF_THE_BUS = "tpu_off_the_bus"
    TPU_PERMISSION = "tpu_permission"
    TPU_QUARANTINED = "tpu_quarantined"
    TRAY_IDENTITY = "tray_identity"
    USERS_UNREADABLE = "users_unreadable"
    USB_DIRECT_MODE = "usb_direct_mode"
    USB_FROZEN = "usb_frozen"
    USB_GADGET = "usb_gadget"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    WORKER_MEMORY = "worker_memory"


@dataclass(frozen=True)
class Sort:
    """What is the same for all repairs of a kind; `fix` is what the automatic fix does, empty when there is none."""

    severity: Severity
    advice: str
    fix: str = ""


SORTS: dict[Kind, Sort] = {
    Kind.CONFIGURATION_REFUSED: Sort(
        Severity.ERROR,
        "Correct the file ('coral-reef config check' shows the lines), then 'coral-reef reload'. "
        "Until then the appliance runs with the configuration it had.",
        "reads the configuration again",
    ),
    Kind.CONFIGURATION_WARNING: Sort(
        Severity.WARNING, "Correct the line, then 'coral-reef reload'.", "reads the configuration again"
    ),
    Kind.FIREWALL_OFF: Sort(
        Severity.WARNING,
        "Set 'firewall.enabled: true' in network.yaml, then 'coral-reef net apply'. What the firewall would let through, "
        "'coral-reef net firewall' tells.",
    ),
    Kind.NETWORK_DRIFT: Sort(
        Severity.WARNING,
        "Somebody changed the network behind the appliance's back. 'coral-reef net apply' makes it as network.yaml says; to keep "
        "the change, write it there. 'drift: repair' in network.yaml does so by itself.",
    ),
    Kind.NETWORK_MANAGER_MISSING: Sort(
        Severity.ERROR,
        "Look at 'systemctl status NetworkManager'. Until it runs, ports stay as they are, and the USB port is the way in.",
    ),
    Kind.NETWORK_NOT_APPLIED: Sort(
        Severity.ERROR,
        "Correct network.yaml ('coral-reef net diff' shows what it would change), then 'coral-reef net apply'. Until then the "
        "network is as it was.",
    ),
    Kind.NETWORK_UNFINISHED: Sort(
        Severity.ERROR,
        "It is tried again by itself. If it stays, restart NetworkManager ('systemctl restart NetworkManager').",
    ),
    Kind.PORT_GUESSED: Sort(
        Severity.WARNING,
        "Say in network.yaml which hardware the port is, then 'coral-reef net apply'.",
    ),
    Kind.PORT_MISSING: Sort(
        Severity.WARNING,
        "Plug it in, or correct 'match' in network.yaml ('coral-reef net show' lists what there is). The rest of the network "
        "goes on without it.",
    ),
    Kind.MODE_NOT_IN_EFFECT: Sort(
        Severity.WARNING, "Set 'mode: local' in network.yaml, or wait for a release that has the mode."
    ),
    Kind.MODEL_UNUSABLE: Sort(
        Severity.CRITICAL,
        "Add the model again ('coral-reef model add FILE --name NAME --replace'), or load another one "
        "('coral-reef model load NAME'; 'coral-reef model list' shows them).",
        "starts the worker again",
    ),
    Kind.ADAPTER_UNUSABLE: Sort(
        Severity.ERROR,
        "Add the adapter again ('coral-reef model add FILE --for MODEL --name NAME --replace') or remove it "
        "('coral-reef model remove NAME'), then 'coral-reef model load MODEL'. The model itself is not affected.",
    ),
    Kind.MODEL_ASTRAY: Sort(
        Severity.WARNING,
        "Run 'make models-tpu' again, or add the model that it was compiled from. Until then that one runs on the CPU, "
        "if it is there.",
    ),
    Kind.SMALL_MODEL_UNUSABLE: Sort(
        Severity.ERROR,
        "Add the model again, or install Coral-Reef again; what was compiled for TPUs is made again by 'make models-tpu'. "
        "Conversations go on without it.",
    ),
    Kind.MODELS_NOT_COMPILED: Sort(
        Severity.WARNING,
        "Run 'make models-tpu' on a PC that has edgetpu_compiler, and install what it makes. Until then the "
        "TPUs have nothing to do.",
    ),
    Kind.TPU_LIBRARY: Sort(
        Severity.ERROR,
        "Install libedgetpu1-std, built for TensorFlow 2.16 or later, and restart the appliance. Until then "
        "the models run on the CPU.",
    ),
    Kind.TPU_BOOT_LOADER: Sort(
        Severity.ERROR,
        "Unplug it and plug it in again, or switch the power of its port off and on. "
        "If that does not help, try another cable or port: it needs up to 900 mA.",
        "resets it and uses it again",
    ),
    Kind.TPU_DRIVER: Sort(
        Severity.ERROR,
        "Install Google's driver (the package gasket-dkms, with the headers of the running kernel) and load it: 'modprobe apex'.",
    ),
    Kind.TPU_HOT: Sort(
        Severity.WARNING,
        "Look at fans and air flow of the tray. It gets its work back when it is cooler "
        "(devices.throttle_c, shutdown_c and hysteresis_c in appliance.toml).",
    ),
    Kind.TPU_NODE: Sort(
        Severity.ERROR,
        "Its file in /dev is missing: see that udev runs ('systemctl status systemd-udevd'), and in a container, "
        "that /dev/bus/usb or /dev/apex_N is passed through.",
    ),
    Kind.TPU_OFF_THE_BUS: Sort(
        Severity.ERROR,
        "Switch the tower off and on again; a restart alone does not help. If it happens again, seat the module anew and "
        "cool it better.",
        "resets it and uses it again",
    ),
    Kind.TPU_PERMISSION: Sort(
        Severity.ERROR,
        "Install the udev rules (udev/65-coral-reef-tpu.rules; 'make install' does), then 'udevadm control --reload' and "
        "'udevadm trigger'. The user must be in the group plugdev for USB, apex for PCIe.",
    ),
    Kind.TPU_QUARANTINED: Sort(
        Severity.ERROR,
        "Try another port, cable or power supply, then use it again with 'coral-reef tpu reset ID'.",
        "resets it and uses it again",
    ),
    Kind.TRAY_IDENTITY: Sort(
        Severity.WARNING,
        "Correct what devices.identity names, or write the tray's memory anew. Until then the tray goes by its place.",
    ),
    Kind.USERS_UNREADABLE: Sort(
        Severity.ERROR,
        "Restore the file from a backup, or remove it as root: then there are no users, and whoever holds the USB cable may make "
        "the first one. Until then nobody can log in on a serial line; this command and the network go on.",
        "reads the file again",
    ),
    Kind.USB_DIRECT_MODE: Sort(
        Severity.ERROR,
        "Correct network.yaml, install what is missing ('make install' names the packages), or switch direct mode off "
        "('enabled: false' at the USB port in network.yaml); then 'systemctl restart coral-reef-gadget'. The serial console "
        "works without it.",
    ),
    Kind.USB_FROZEN: Sort(
        Severity.WARNING,
        "Unplug the cable and plug it in again, or try another cable, port or desktop. A charger, or a cable that only charges, "
        "looks the same.",
    ),
    Kind.USB_GADGET: Sort(
        Severity.ERROR,
        "Look at 'journalctl -u coral-reef-gadget'. A port that another program has is tried again and again; "
        "a kernel without libcomposite, usb_f_acm and usb_f_ncm cannot do it.",
    ),
    Kind.WORKER_CRASH_LOOP: Sort(
        Severity.CRITICAL,
        "Look at the log for the reason. A model or a setting that was changed last is the likeliest one.",
        "starts the worker again at once",
    ),
    Kind.WORKER_MEMORY: Sort(
        Severity.ERROR,
        "Lower text.slots, text.context_tokens or text.cache_mib in appliance.toml, or load a smaller model; if the machine has "
        "more memory, raise text.memory_limit_mib.",
    ),
}

_ORDER = (Severity.CRITICAL, Severity.ERROR, Severity.WARNING)


class Repairs:
    """All that is wrong now. `changed(repair, gone)` is called whenever one appears, changes or goes."""

    def __init__(
        self, changed: Callable[[Repair, bool], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._changed, self._clock = changed, clock
        self._open: dict[str, tuple[Repair, Fix | None]] = {}

    def open(self, kind: Kind, subject: str, what: str, fix: Fix | None = None) -> None:
        """Something is wrong with `subject`. Said again in the same words it is nothing new; in others, the words change."""
        sort = SORTS[kind]
        key = _id(kind, subject)
        before = self._open.get(key)
        repair = Repair(
            id=key,
            kind=kind,
            subject=subject,
            severity=sort.severity,
            since=before[0].since if before else self._clock(),
            what=what,
            advice=sort.advice,
            fix=sort.fix if fix else "",
        )
        self._open[key] = repair, fix
        if before is None or before[0] != repair:
            self._changed(repair, False)

    def close(self, kind: Kind, subject: str) -> None:
        """It is over; nothing happens when there was nothing."""
        if found := self._open.pop(_id(kind, subject), None):
            self._changed(found[0], True)

    def when(self, kind: Kind, subject: str, what: str, fix: Fix | None = None) -> None:
        """Opens it while there is something to say, closes it when `what` is empty."""
        if what:
            self.open(kind, subject, what, fix)
        else:
            self.close(kind, subject)

    def only(self, kind: Kind, troubles: Iterable[tuple[str, str]], fix: Fix | None = None) -> None:
        """Exactly these (subject, what) are wrong of this kind: opens them and closes all others."""
        wanted = dict(troubles)
        for repair in self.all():
            if repair.kind == kind and repair.subject not in wanted:
                self.close(kind, repair.subject)
        for subject, what in wanted.items():
            self.open(kind, subject, what, fix)

    def all(self) -> list[Repair]:
        """Worst first, then oldest first."""
        repairs = [repair for repair, _ in self._open.values()]
        return sorted(repairs, key=lambda repair: (_ORDER.index(repair.severity), repair.since))

    async def fix(self, repair_id: str) -> str:
        """Does what the repair's `fix` says and returns a sentence. NoSuchRepair, NotFixable, or what the fix raises."""
        if repair_id not in self._open:
            raise NoSuchRepair(f"nothing is wrong under the name {repair_id!r} (any more)")
        repair, fix = self._open[repair_id]
        if fix is None:
            raise NotFixable(f"{repair_id}: nothing that the appliance can do itself. {repair.advice}")
        return await fix()


def _id(kind: Kind, subject: str) -> str:
    return f"{kind}:{subject}"
