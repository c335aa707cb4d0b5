"""Every message of the protocol. A frame holds one of them, as msgpack, its name in the field `type`.

Two kinds of connection: to the supervisor's control socket (leases, status) and to a worker's socket (`Generate` and what follows
from it). Either side's first message is `Hello`.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

#: Raised whenever a message changes its meaning; processes of different versions do not talk.
PROTOCOL_VERSION = 1

Id = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=262_144)]

#: What one `Invoke` holds at most: inputs, characters or bytes of each. All of it has to fit a frame, too.
INVOCATIONS_LIMIT = 128
INPUT_LIMIT_CHARS = 32_768
TENSOR_LIMIT_BYTES = 524_288

#: A TPU worker has at most so many open: a tray, or part of one.
TPUS_LIMIT = 16


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, kw_only=True):
    """Base of everything that travels."""


class Confidential(Message, frozen=True, kw_only=True):
    """A message that holds a secret: none of its values appears in a log, a traceback or a test's report."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class Hello(Message, frozen=True, kw_only=True):
    """First message in either direction: who speaks, in which version."""

    version: int = PROTOCOL_VERSION
    name: Annotated[str, Meta(max_length=64)]


class Failure(Message, frozen=True, kw_only=True):
    """The answer to a message that could not be carried out. `request_id` is empty when none could be read. Asked again before
    `retry_after_s`, the answer is the same."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=4096)]
    request_id: Annotated[str, Meta(max_length=64)] = ""
    retry_after_s: Annotated[float, Meta(ge=0)] = 0.0


def failure(code: str, error: Exception | str, request_id: str = "") -> Failure:
    """A Failure with its text cut to length: an error may quote whatever a peer or an engine said."""
    return Failure(code=code, message=str(error)[:1024], request_id=request_id)


def protocol_failure(error: Exception) -> Failure:
    """The last thing that a peer hears which did not speak our protocol."""
    return failure("protocol", error)


# --- control socket ---------------------------------------------------------------------------------------------


class LeaseRequest(Message, frozen=True, kw_only=True):
    """A gateway asks for a place on a worker. The session is locked until the lease ends.

    `model` is empty for the default model, `adapter` for none.
    """

    request_id: Id
    session_id: Id
    model: Annotated[str, Meta(max_length=128)] = ""
    adapter: Annotated[str, Meta(max_length=128)] = ""


class LeaseQueued(Message, frozen=True, kw_only=True):
    """The request waits. `position` is its place among those for the same model and adapter, 1 for the next.

    Sent when it begins to wait and again as it moves up: within about half a second, beyond the tenth place only after a tenth of
    the way.
    """

    request_id: Id
    position: Annotated[int, Meta(ge=1)]


class LeaseGranted(Message, frozen=True, kw_only=True):
    """The place: stream from the worker at `socket`, then settle."""

    request_id: Id
    lease_id: Id
    worker: Annotated[str, Meta(max_length=64)]
    socket: Annotated[str, Meta(max_length=107)]
    model: Annotated[str, Meta(max_length=128)]
    adapter: Annotated[str, Meta(max_length=128)] = ""


class LeaseSettled(Message, frozen=True, kw_only=True):
    """The gateway gives the place back, or withdraws a request that still waits. Tokens are those of the finished request."""

    request_id: Id
    prompt_tokens: Annotated[int, Meta(ge=0)] = 0
    completion_tokens: Annotated[int, Meta(ge=0)] = 0


class Priority(IntEnum):
    """Who goes first where invocations wait; the specification's classes of service."""

    HIGH = 0  # part of a conversation under way
    NORMAL = 1  # somebody waits for it
    LOW = 2  # batches, indexing
    BULK = 3  # when nothing else is to be done


class InvokeLease(Message, frozen=True, kw_only=True):
    """A gateway asks where a small model runs now. Answered by `LeaseGranted` or `Failure` at once: what has to wait waits in the
    worker, by priority. `kind` is `embedding` or `emotion`, `model` empty for the first of that kind. `avoid` names a worker that
    was lost a moment ago."""

    request_id: Id
    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    model: Annotated[str, Meta(max_length=128)] = ""
    invocations: Annotated[int, Meta(ge=1, le=INVOCATIONS_LIMIT)]
    avoid: Annotated[str, Meta(max_length=64)] = ""


class StatusRequest(Message, frozen=True, kw_only=True):
    """Asks for a `Status`."""


class WorkerState(StrEnum):
    """Life of a worker, as its keeper sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # finishes its streams, takes no new ones
    STOPPING = "stopping"
    WAITING = "waiting"  # died; waits for its restart


class EngineBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that a worker runs. Of the text engine, `build` is `wheel` for the portable one, `native` for one built for this
    CPU, and `features` are the instruction sets that it uses, as it names them; LiteRT's is `xnnpack` on the CPU, `libedgetpu` on
    TPUs."""

    version: str
    build: str
    features: list[str] = []


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. Memory is the resident set in bytes; `since_s` the seconds in this state."""

    name: str
    kind: str
    model: str
    state: WorkerState
    pid: int
    leases: int
    slots: int
    restarts: int
    rss_bytes: int
    since_s: float
    detail: str = ""
    engine: EngineBuild | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model that the appliance knows."""

    name: str
    kind: str
    size_bytes: int
    sha256: str
    shipped: bool
    loaded_by: list[str]
    context_tokens: int = 0
    problem: str = ""


class Severity(StrEnum):
    """How much a repair matters."""

    WARNING = "warning"  # works, but not as the owner thinks or for long
    ERROR = "error"  # something that the owner wants does not work
    CRITICAL = "critical"  # nothing that the owner wants works


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the owner should know and may have to do; gone when it is gone.

    `id` is `kind` and `subject`; `since` in seconds since 1970; `fix` says what `RepairFix` would do, empty when nothing can.
    """

    id: str
    kind: str
    subject: str
    severity: Severity
    since: float
    what: str
    advice: str
    fix: str = ""


class TpuBus(StrEnum):
    """How a TPU is attached."""

    USB = "usb"
    PCIE = "pcie"


class TpuRole(StrEnum):
    """What the TPUs of a tray are for; the reserve takes over for one that failed."""

    LANGUAGE = "language"
    PERCEPTION = "perception"
    MEMORY = "memory"
    RESERVE = "reserve"


class TpuState(StrEnum):
    """Life of a TPU, as the table of devices sees it."""

    APPEARING = "appearing"  # the kernel has it, not all that is needed is there yet
    BOOT_LOADER = "boot_loader"  # a USB one that nobody has opened since it was plugged in: healthy
    READY = "ready"
    LEASED = "leased"  # a worker has it open
    HOT = "hot"  # gets less work, or none
    FAULTY = "faulty"
    QUARANTINED = "quarantined"  # failed too often: used again only when the owner says so
    GONE = "gone"


class Tpu(msgspec.Struct, frozen=True, kw_only=True):
    """One Edge TPU. `id` stays the same as long as it is in its place: `usb-` and its port path (`usb-1-1.2`), or `pci-` and its
    address (`pci-0000:03:00.0`). `node` is what a worker opens; `sysfs` its folder there. `slot` counts from 1 in its tray.
    Temperature in degrees Celsius where the driver tells it.

    `load_limit`, from 0 to 1, is the share of its usual work that it may get now: less when it is hot, none when it is hotter or
    cannot be used. `stands_in`: it belongs to the reserve and has taken over `role` from one that failed. `speed_mbps` is that
    of its USB link, 0 when unknown."""

    id: str
    bus: TpuBus
    state: TpuState
    node: str
    sysfs: str
    tray: str
    slot: int
    role: TpuRole
    since_s: float = 0.0
    temperature_c: float | None = None
    worker: str = ""
    detail: str = ""
    load_limit: float = 0.0
    stands_in: bool = False
    speed_mbps: int = 0


class Tray(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of the tower. `slots`: how many TPUs it has room for. `identity` is what its EEPROM calls it and `persona` whom
    it is bound to: both travel with the tray. `problem`: why its identity cannot be used."""

    name: str
    slots: int
    identity: str = ""
    persona: str = ""
    problem: str = ""


class Hotplug(StrEnum):
    """How the supervisor learns that a TPU comes or goes."""

    UDEV = "udev"  # at once
    POLLED = "polled"  # no udev runs here: it looks every few seconds


class TpuReset(Message, frozen=True, kw_only=True):
    """Reset a TPU's port or chip, forget its failures and use it again. `Done` when that is done."""

    request_id: Id
    id: Id


class TpuQuarantine(Message, frozen=True, kw_only=True):
    """Use a TPU no more, until `TpuReset`."""

    request_id: Id
    id: Id


class ModelLoad(Message, frozen=True, kw_only=True):
    """Let the model of that name write the replies from now on. Answered by `ModelLoading`, then `ModelLoaded` or `Failure`."""

    request_id: Id
    model: Annotated[str, Meta(min_length=1, max_length=128)]


class ModelLoading(Message, frozen=True, kw_only=True):
    """A worker has begun to load the model; it is given up after `deadline_s`."""

    request_id: Id
    model: str
    worker: str
    size_bytes: int
    deadline_s: float


class ModelLoaded(Message, frozen=True, kw_only=True):
    """New replies come from `model` now, on `worker`; `draining` replies go on on the one before until they end."""

    request_id: Id
    model: str
    worker: str
    context_tokens: int
    draining: int


class UsbState(StrEnum):
    """How far the USB port towards a desktop has come."""

    WAITING = "waiting"  # the machine has no device controller, at least not yet
    UNPLUGGED = "unplugged"
    CONNECTED = "connected"
    FROZEN = "frozen"  # a desktop began to ask who we are, and was not satisfied however often we began anew
    FAILED = "failed"


class UsbLink(msgspec.Struct, frozen=True, kw_only=True):
    """The USB port as the gadget's service sees it. `functions` are what a desktop sees (acm: serial line, ncm: network);
    `interface` and `address` are empty without direct mode, `trouble` says why that does not work. `speed` is in the kernel's
    words (`super-speed`), empty when nobody is there."""

    state: UsbState
    detail: str
    controller: str = ""
    speed: str = ""
    functions: list[str] = []
    interface: str = ""
    address: str = ""
    trouble: str = ""

    @property
    def in_words(self) -> str:
        """What is plugged in, and where the API is reached over it."""
        words = self.detail
        if self.address and self.state in (UsbState.CONNECTED, UsbState.UNPLUGGED):
            words += f"; direct mode on {self.interface}, {self.address}"
        return words + (f"; no direct mode: {self.trouble}" if self.trouble else "")


class Status(Message, frozen=True, kw_only=True):
    """The appliance as the supervisor sees it. `summary` is the line that systemd shows; `model` is the one that writes the
    replies, and `configured_model` what appliance.toml says (another one when `coral-reef model load` chose). Repairs come worst
    first; TPUs by tray and slot, those that are gone too. `usb` is None where nobody looks after a USB port."""

    version: str
    mode: str
    pid: int
    uptime_s: float
    rss_bytes: int
    ready: bool
    summary: str
    leases: int
    waiting: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    repairs: list[Repair]
    workers: list[WorkerStatus]
    models: list[ModelStatus]
    model: str = ""
    configured_model: str = ""
    tpus: list[Tpu] = []
    trays: list[Tray] = []
    hotplug: Hotplug = Hotplug.POLLED
    usb: UsbLink | None = None


class TrafficRequest(Message, frozen=True, kw_only=True):
    """Asks for a `Traffic`."""

    request_id: Id


class InterfaceTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a network interface carries, as the kernel counts it: bytes since it came up, rates of the last second, and the
    highest rates of the day (local time, and since the supervisor started). `port`: it is in the sum; what stands on another (a
    VLAN, a bond) is not, lest it be counted twice."""

    name: str
    port: bool
    bytes_in: int
    bytes_out: int
    in_bytes_per_s: int
    out_bytes_per_s: int
    peak_in_bytes_per_s: int
    peak_out_bytes_per_s: int


class Traffic(Message, frozen=True, kw_only=True):
    """All interfaces but the loopback, by name, and the sum of the ports, which has none."""

    request_id: Id
    total: InterfaceTraffic
    interfaces: list[InterfaceTraffic]


class Reload(Message, frozen=True, kw_only=True):
    """Read the configuration again. `Done` says what changed; `Failure` why everything stays as it was."""

    request_id: Id


class WorkerRestart(Message, frozen=True, kw_only=True):
    """Let a worker finish its streams and start it anew. `Done` when it is ready again."""

    request_id: Id
    name: Annotated[str, Meta(max_length=64)]


class RepairFix(Message, frozen=True, kw_only=True):
    """Do what the repair's `fix` says. `Done` when it was done, not when the trouble is over: that is an event."""

    request_id: Id
    id: Annotated[str, Meta(max_length=256)]


class Done(Message, frozen=True, kw_only=True):
    """A request to the supervisor was carried out; `detail` is a sentence for people."""

    request_id: Id
    detail: str = ""


class Topic(StrEnum):
    """What one can subscribe to."""

    WORKER = "worker"
    REPAIR = "repair"
    SYSTEM = "system"
    TPU = "tpu"


class Subscribe(Message, frozen=True, kw_only=True):
    """From now on, send the events of these topics; all when none is named."""

    topics: Annotated[list[Topic], Meta(max_length=16)] = []


class WorkerChanged(Message, frozen=True, kw_only=True):
    """A worker entered another state."""

    worker: WorkerStatus


class RepairChanged(Message, frozen=True, kw_only=True):
    """A repair appeared, changed, or is `gone`."""

    repair: Repair
    gone: bool = False


class SystemChanged(Message, frozen=True, kw_only=True):
    """Something happened to the appliance as a whole: `reloaded`, `reload_refused`, `stopping`, `session_ended` (a token that was
    issued is worth nothing any more)."""

    event: str
    detail: str = ""


class TpuChanged(Message, frozen=True, kw_only=True):
    """A TPU came, went, or is other than it was; of its temperature only every few degrees are told."""

    tpu: Tpu


class EventsLost(Message, frozen=True, kw_only=True):
    """The subscriber was too slow: so many events before the next one were left out, the oldest first."""

    count: int


Event = WorkerChanged | RepairChanged | SystemChanged | TpuChanged


# --- what the doctor of the network finds ---------------------------------------------------------------------------


class Check(StrEnum):
    """What the doctor of the network looks at, in this order: what stands further down needs what stands above."""

    LINK = "link"
    ADDRESS = "address"
    GATEWAY = "gateway"
    DNS = "dns"
    TIME = "time"
    MTU = "mtu"
    PORTS = "ports"
    CERTIFICATE = "certificate"
    CLIENTS = "clients"
    LATENCY = "latency"
    ERRORS = "errors"


class Outcome(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What the doctor of the network found, in a sentence each. `subject` is an interface, a host or an address, or empty;
    `symptom` is what was seen, also when all is well; `cause` and `remedy` are empty then. Of what was skipped, `symptom` says
    why."""

    check: Check
    subject: str
    outcome: Outcome
    symptom: str
    cause: str = ""
    remedy: str = ""


# --- control socket: the network --------------------------------------------------------------------------------------

#: A text of network.yaml: as long as the file may be.
NetworkText = Annotated[str, Meta(max_length=262_144)]

#: How long a change may wait for its confirmation, in seconds; 0: it needs none.
ConfirmWithin = Annotated[float, Meta(ge=0, le=86_400)]


class PortState(StrEnum):
    """How it stands with a port, a bond or a VLAN."""

    UP = "up"
    CONNECTING = "connecting"
    NO_LINK = "no link"
    DOWN = "down"
    MISSING = "missing"
    FOREIGN = "not ours"


class NetworkPort(msgspec.Struct, frozen=True, kw_only=True):
    """One interface: of a role, or a device that has none (then `role` is empty). `detail` says what is the matter.

    `kind` is NetworkManager's word for it: ethernet, wifi, vlan, bond. Addresses have a prefix.
    """

    role: str
    interface: str
    kind: str
    state: PortState
    mac: str = ""
    driver: str = ""
    speed_mbps: int = 0
    mtu: int = 0
    addresses: list[str] = []
    gateways: list[str] = []
    name_servers: list[str] = []
    received_bytes: int = 0
    sent_bytes: int = 0
    detail: str = ""


class NetworkLook(Message, frozen=True, kw_only=True):
    """How is the network? `NetworkState`."""

    request_id: Id


class NetworkState(Message, frozen=True, kw_only=True):
    """`managed`: whether we look after it; `why` says why not. `confirm_within_s`: what was applied goes back after so long,
    if nobody confirms it; 0: nothing waits. `revision` counts what was applied; `differs`: network.yaml says something else.
    `drift`: what somebody changed behind our back."""

    request_id: Id
    managed: bool
    mode: str
    why: str = ""
    ports: list[NetworkPort] = []
    confirm_within_s: float = 0.0
    revision: int = 0
    differs: bool = False
    drift: list[str] = []
    firewall: bool = False


class NetworkDiff(Confidential, frozen=True, kw_only=True):
    """What would applying this text change? Without one, network.yaml as it is on the disk. `NetworkPlan`."""

    request_id: Id
    text: NetworkText | None = None


class NetworkPlan(Message, frozen=True, kw_only=True):
    """`lines` for people; none: nothing would change. `warnings` of the text."""

    request_id: Id
    lines: list[str] = []
    warnings: list[str] = []


class NetworkApply(Confidential, frozen=True, kw_only=True):
    """Make it so. A text replaces network.yaml when all went well; without one, network.yaml as it is. `Done` when it is so, or
    when it waits for its confirmation; `Failure` when everything is as it was before."""

    request_id: Id
    text: NetworkText | None = None
    confirm_s: ConfirmWithin = 0.0
    why: Annotated[str, Meta(max_length=256)] = ""


class NetworkConfirm(Message, frozen=True, kw_only=True):
    """What was applied shall stay."""

    request_id: Id


class NetworkCancel(Message, frozen=True, kw_only=True):
    """What was applied and waits for its confirmation shall go back now."""

    request_id: Id


class NetworkBack(Message, frozen=True, kw_only=True):
    """Apply what was in effect `steps` changes ago; 0 is what is in effect."""

    request_id: Id
    steps: Annotated[int, Meta(ge=0, le=1000)]
    confirm_s: ConfirmWithin = 0.0


class NetworkPast(Message, frozen=True, kw_only=True):
    """What was in effect before? `NetworkRevisions`."""

    request_id: Id


class NetworkRevision(msgspec.Struct, frozen=True, kw_only=True):
    """`at` in seconds since the epoch."""

    number: int
    at: float
    by: str = ""
    why: str = ""


class NetworkRevisions(Message, frozen=True, kw_only=True):
    """Newest first: the first is in effect."""

    request_id: Id
    revisions: list[NetworkRevision] = []


class NetworkRevisionText(Message, frozen=True, kw_only=True):
    """The text of the revision so many steps back? Without a number, of network.yaml itself. `NetworkRevisionShown`, for
    administrators alone."""

    request_id: Id
    steps: Annotated[int, Meta(ge=0, le=1000)] | None = None


class NetworkRevisionShown(Confidential, frozen=True, kw_only=True):
    """The text, with its secrets."""

    request_id: Id
    text: NetworkText


class FirewallLook(Message, frozen=True, kw_only=True):
    """What does the firewall do? `FirewallState`."""

    request_id: Id


class FirewallState(Message, frozen=True, kw_only=True):
    """`lines`: each rule in words with what it has counted."""

    request_id: Id
    enabled: bool
    lines: list[str] = []


# --- control socket: local users ------------------------------------------------------------------------------------

#: As long as a name or a password can be in a message; what makes a good one is decided in `appliance.identity.users`.
UserName = Annotated[str, Meta(min_length=1, max_length=64)]
Password = Annotated[str, Meta(max_length=1024)]
UserRole = Literal["admin", "user", "guest"]

#: A serial line, as its device is called (`ttyGS0`).
Line = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._/-]{1,64}\Z")]

#: SHA-256 of a session's token.
TokenDigest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class LoginQuestion(Message, frozen=True, kw_only=True):
    """Asks what a line has to ask of a person. Answered by `LoginNeeds`, or `Failure` (`users_unreadable`)."""

    request_id: Id
    line: Line


class LoginNeeds(Message, frozen=True, kw_only=True):
    """`first_user`: there is no user yet, and `FirstUser` on a USB line makes one. An attempt on this line is heard in
    `retry_after_s`."""

    request_id: Id
    first_user: bool
    retry_after_s: float


class Login(Confidential, frozen=True, kw_only=True):
    """A person on a serial line gives name and password. Answered by `LoggedIn`, or `Failure`: `wrong_login` (was tried, and is
    wrong), `too_soon` (was not tried: not before `retry_after_s`), `no_users`, `users_unreadable`, `busy`.

    The session that begins is this connection's, and ends with it; the supervisor ends the connection when the user is
    removed or gets another password. `line` (`ttyGS0`) and `usb` are believed of the console alone."""

    request_id: Id
    name: UserName
    password: Password
    line: Line
    usb: bool


class FirstUser(Confidential, frozen=True, kw_only=True):
    """Makes the first user, an administrator, who is logged in by it. Only from a USB line and while there is no user: `Failure`
    with `not_usb`, `users_exist`, `bad_user` (its message says what is wrong with name or password)."""

    request_id: Id
    name: UserName
    password: Password
    usb: bool


class LoggedIn(Message, frozen=True, kw_only=True):
    """Who the person on this connection is now."""

    request_id: Id
    name: str
    role: UserRole


class IssueToken(Message, frozen=True, kw_only=True):
    """Asks for a bearer token for the gateway: it is worth what the user is, as long as this connection is open. The console gets
    one for who is logged in on this connection, others for whom they like. Answered by `IssuedToken`; `Failure` is `denied`."""

    request_id: Id
    name: UserName


class IssuedToken(Confidential, frozen=True, kw_only=True):
    """The token. It is stored nowhere."""

    request_id: Id
    token: str


class CheckToken(Message, frozen=True, kw_only=True):
    """A gateway was shown a token. Answered by `TokenHolder`, or `Failure` with `unknown_token`. What it remembers of the answer,
    it forgets at `SystemChanged` `session_ended`."""

    request_id: Id
    digest: TokenDigest


class TokenHolder(Message, frozen=True, kw_only=True):
    """Whose token it is."""

    request_id: Id
    name: str
    role: UserRole


class UserList(Message, frozen=True, kw_only=True):
    """Asks for `Users`."""

    request_id: Id


class LocalUser(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may log in on a serial line. `created_at` in seconds since 1970."""

    name: str
    role: UserRole
    created_at: float


class Users(Message, frozen=True, kw_only=True):
    """All local users, by name."""

    request_id: Id
    users: list[LocalUser]


class UserAdd(Confidential, frozen=True, kw_only=True):
    """Makes a user. `Done`, or `Failure`: `bad_user`, `user_exists`, `users_unreadable`, `denied`."""

    request_id: Id
    name: UserName
    password: Password
    role: UserRole


class UserPassword(Confidential, frozen=True, kw_only=True):
    """Gives a user another password and ends the user's other sessions. Who is no administrator may change the own one. `Done`,
    or `Failure`: `bad_user`, `unknown_user`, `users_unreadable`, `denied`."""

    request_id: Id
    name: UserName
    password: Password


class UserRemove(Message, frozen=True, kw_only=True):
    """Removes a user and ends the user's sessions. `Done`, or `Failure`: `unknown_user`, `last_admin`, `users_unreadable`,
    `denied`."""

    request_id: Id
    name: UserName


class PowerAction(StrEnum):
    """What to do with the machine."""

    REBOOT = "reboot"
    POWER_OFF = "poweroff"


class Power(Message, frozen=True, kw_only=True):
    """Restart the machine or switch it off. `Done` when systemd has taken the order, or `Failure`: `denied`,
    `power_unavailable`."""

    request_id: Id
    action: PowerAction


# --- worker socket ---------------------------------------------------------------------------------------------


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation, for the model's chat template."""

    role: Annotated[str, Meta(pattern="^(system|user|assistant|tool)$")]
    content: Text


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to draw tokens. Greedy at temperature 0; `seed` makes a draw repeatable."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Meta(ge=1, le=32_768)] = 256
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)] = []
    seed: Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)] | None = None


class Generate(Message, frozen=True, kw_only=True):
    """Continue a conversation. The worker leaves out the oldest turns, never the system prompt, when the window is too small.

    `pause_s`: after the first text, more comes only every so often, and the rest at the end; 0: at once.
    """

    request_id: Id
    turns: Annotated[list[Turn], Meta(min_length=1, max_length=1024)]
    sampling: Sampling
    adapter: Annotated[str, Meta(max_length=128)] = ""
    pause_s: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Cancel(Message, frozen=True, kw_only=True):
    """Stop a generation; it ends with `Finished(cancelled)`."""

    request_id: Id


class Tokens(Message, frozen=True, kw_only=True):
    """New text of any number of streams: (request_id, text) pairs, those of one wake-up together."""

    items: list[tuple[str, str]]


class Progress(Message, frozen=True, kw_only=True):
    """How much of a long prompt has been read: `done` of `total` tokens. Not more often than four times a second."""

    request_id: Id
    done: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=0)]


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL = "tool"
    CANCELLED = "cancelled"
    ERROR = "error"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a request used; `cached_tokens` of the prompt were still in the engine from before."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Finished(Message, frozen=True, kw_only=True):
    """The last message of a stream that did not fail."""

    request_id: Id
    finish_reason: FinishReason
    usage: Usage


class Invoke(Message, frozen=True, kw_only=True):
    """Run a model once for each input: texts, which the worker makes tensors of, or tensors as the model takes them. Exactly
    one of the two lists holds something. `account` is who is served fairly beside others; any string of its own."""

    request_id: Id
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    account: Annotated[str, Meta(max_length=128)] = ""
    priority: Priority = Priority.NORMAL
    texts: Annotated[
        list[Annotated[str, Meta(max_length=INPUT_LIMIT_CHARS)]], Meta(max_length=INVOCATIONS_LIMIT)
    ] = []
    tensors: Annotated[
        list[Annotated[bytes, Meta(max_length=TENSOR_LIMIT_BYTES)]], Meta(max_length=INVOCATIONS_LIMIT)
    ] = []


class EmotionOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a text expresses: the likeliest label, how strongly (0 to 1), and each label's probability."""

    label: str
    intensity: float
    probabilities: dict[str, float]


class Invoked(Message, frozen=True, kw_only=True):
    """The answer, one output for each input in their order: of a text what it means (an embedding's float32, little endian, or an
    `EmotionOutput` in msgpack), of a tensor the model's own bytes. `tokens` is how many words the texts had;
    `ran_on` names the TPUs, or `cpu`."""

    request_id: Id
    outputs: list[bytes]
    tokens: int
    ran_on: list[str]


# --- forkserver and worker pipe -----------------------------------------------------------------------------------


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter for a worker's model."""

    name: str
    path: str
    sha256: str
    size_bytes: int


class TensorModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that TPU workers and the CPU's run. `twin` is the file that runs anywhere, `compiled` what edgetpu_compiler made of
    it, empty when nobody has (with its SHA-256 where a manifest tells); of a model that is cut, `segments` are the files for
    one TPU each, in order, and `compiled` is empty. `kind` says what its outputs mean."""

    name: str
    kind: str
    twin: str
    sha256: str
    size_bytes: int
    compiled: str = ""
    compiled_sha256: Annotated[str, Meta(max_length=64)] = ""
    segments: Annotated[list[str], Meta(max_length=TPUS_LIMIT)] = []

    @property
    def on_tpus(self) -> bool:
        """Whether somebody has compiled it."""
        return bool(self.compiled or self.segments)


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker needs to know. `folder` is its own, mode 0700; `socket` is where gateways connect. `models` are those
    of a worker of the kind `tpu` or `cpu`; a text worker has one, `model`."""

    name: str
    kind: str
    model: str
    model_path: str
    model_sha256: str
    model_size_bytes: int
    socket: str
    folder: str
    slots: int
    threads: int
    context_tokens: int = 0
    batch_tokens: int = 0  # 0: measured
    cache_mib: int = 0
    adapters: list[AdapterFile] = []
    models: list[TensorModel] = []


class Spawn(Message, frozen=True, kw_only=True):
    """To the forkserver, with the worker's pipe as file descriptor: fork a worker."""

    spec: WorkerSpec


class Spawned(Message, frozen=True, kw_only=True):
    """The worker's process."""

    name: str
    pid: int


class Exited(Message, frozen=True, kw_only=True):
    """A worker ended; `status` as waitpid(2) gives it."""

    pid: int
    status: int


class WorkerReady(Message, frozen=True, kw_only=True):
    """Through the worker's pipe, every two seconds or sooner: a count of the engine's steps that grows as long as it works, how
    long a step takes, the streams under way, and its resident set. `stuck_s` is how long the oldest invocation of a model has not
    returned, on the TPU `stuck`."""

    context_tokens: int
    load_s: float
    engine: EngineBuild | None = None
    adapters: list[str] = []
    batch_tokens: int = 0
    step_s: float = 0.0
    refused: dict[str, str] = {}


class WorkerPulse(Message, frozen=True, kw_only=True):
    """Through the worker's pipe, every two seconds or sooner: a count of the engine's steps that grows as long as it works, how
    long a step takes, the streams under way, and its resident set. `stuck_s` is how long the oldest invocation of a model has not
    returned, on the TPU `stuck`."""

    steps: int
    step_s: float
    streams: int
    rss_bytes: int = 0
    stuck: str = ""
    stuck_s: float = 0.0


class WorkerFailed(Message, frozen=True, kw_only=True):
    """Through the worker's pipe: why it ends now."""

    code: str
    message: str


class TpuShare(msgspec.Struct, frozen=True, kw_only=True):
    """A TPU that a worker shall have open. `share` of its time may be used, 1.0 when it is cool, 0 when it is to rest."""

    id: str
    bus: TpuBus
    node: str
    role: TpuRole
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0


class TpuSet(Message, frozen=True, kw_only=True):
    """To a TPU worker, through its pipe: have exactly these open."""

    tpus: Annotated[list[TpuShare], Meta(max_length=TPUS_LIMIT)]


class TpuStep(StrEnum):
    """What a worker does with a TPU."""

    OPENING = "opening"  # it is reset by this: the kernel reports it gone and back
    OPEN = "open"
    CLOSED = "closed"
    FAILED = "failed"  # an invoke failed, or it could not be opened; it is closed
    UNUSABLE = "unusable"  # not the TPU: the library or the models, see `detail`


class TpuReport(Message, frozen=True, kw_only=True):
    """Through a TPU worker's pipe: what became of a TPU."""

    id: str
    step: TpuStep
    detail: Annotated[str, Meta(max_length=1024)] = ""


ToSupervisor = (
    Hello
    | LeaseRequest
    | InvokeLease
    | LeaseSettled
    | StatusRequest
    | TrafficRequest
    | Subscribe
    | Reload
    | WorkerRestart
    | RepairFix
    | ModelLoad
    | TpuReset
    | TpuQuarantine
    | LoginQuestion
    | Login
    | FirstUser
    | IssueToken
    | CheckToken
    | UserList
    | UserAdd
    | UserPassword
    | UserRemove
    | Power
    | NetworkLook
    | NetworkDiff
    | NetworkApply
    | NetworkConfirm
    | NetworkCancel
    | NetworkBack
    | NetworkPast
    | NetworkRevisionText
    | FirewallLook
)
FromSupervisor = (
    Hello
    | Failure
    | LeaseQueued
    | LeaseGranted
    | Status
    | Traffic
    | Done
    | WorkerChanged
    | RepairChanged
    | SystemChanged
    | TpuChanged
    | EventsLost
    | ModelLoading
    | ModelLoaded
    | LoginNeeds
    | LoggedIn
    | IssuedToken
    | TokenHolder
    | Users
    | NetworkState
    | NetworkPlan
    | NetworkRevisions
    | NetworkRevisionShown
    | FirewallState
)
ToWorker = Hello | Generate | Cancel | Invoke
FromWorker = Hello | Failure | Tokens | Progress | Finished | Invoked
ToForkserver = Spawn | Hello
FromForkserver = Hello | Spawned | Exited
FromWorkerPipe = WorkerReady | WorkerPulse | WorkerFailed | TpuReport
ToWorkerPipe = TpuSet
