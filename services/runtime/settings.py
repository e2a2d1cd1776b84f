"""Settings of one server process, from COUNTINGHOUSE_* environment variables; those of its traces, from OTEL_*.

Every wait and size has a bound here, with its unit last in its name.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from coordination.channel import PickerName
from coordination.session.address import EnsembleAddress, ServerAddress, parse_host
from services.kernel.guards import Guards
from services.kernel.money import check_currency

#: Addresses that can be listened on and not called.
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  compared with
#: The longest wait, a week: gRPC takes 32 bits of milliseconds, and asyncio no infinity.
_MOST_S = 604_800
#: The most calls, streams, tickets and units of a budget; gRPC takes 32 bits.
_MOST = 1_000_000
#: A collector's URL, without user and password.
_COLLECTOR = re.compile(r"https?://[^@/?#\s]+/?")


class Profile(StrEnum):
    """Whether failpoints may be armed, guards switched off, TLS left out, and the protos read by reflection."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Settings(BaseSettings):
    """What one process of one service needs to know."""

    model_config = SettingsConfigDict(env_prefix="COUNTINGHOUSE_", extra="ignore", frozen=True, allow_inf_nan=False)

    #: Name of this process among its service's instances; also written into its locks.
    instance: str = "local-1"
    profile: Profile = Profile.PRODUCTION
    #: Address to listen on; port 0 takes a free one. IPv6 with or without brackets; `::` is all addresses, IPv4's too.
    listen_host: str = "127.0.0.1"
    listen_port: int = Field(default=0, ge=0, le=65_535)
    #: Address written into the registry; empty: listen_host, or on 0.0.0.0 and :: the one from which ZooKeeper is
    #: reached.
    advertise_host: str = ""
    #: Port written into the registry, where something stands in front; 0: the one listened on.
    advertise_port: int = Field(default=0, ge=0, le=65_535)

    #: Where the metrics are read, over HTTP; port 0 takes a free one, which the registry shows, and -1 is off.
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=-1, le=65_535)

    #: The ensemble's address, in any spelling of coordination/session/address.py.
    zookeeper: str = "127.0.0.1:2181"
    #: File of this service's user there, `name:password`; None: it has none, and may only read.
    zookeeper_user_file: Path | None = None
    #: Whether the ensemble is an open one, without TLS and users: for Dubbo's clients that know neither.
    zookeeper_plaintext: bool = False
    #: A dead instance's locks and registration last this long. Shorter recovers sooner; longer tolerates longer pauses.
    session_timeout_s: float = Field(default=4.0, gt=0, le=60)
    #: How long a new instance's share of the calls grows until it is whole; 0: whole at once. (Dubbo's default is 600.)
    warmup_s: float = Field(default=0, ge=0, le=3600)
    #: How one of several instances of another service is chosen; `countinghouse registry explain` shows it.
    picker: PickerName = PickerName.POWER_OF_TWO_CHOICES
    #: Where the last provider lists are kept for a cold start without ZooKeeper; empty: nowhere.
    discovery_cache: Path | None = None

    #: SQLAlchemy URL: sqlite:///file or postgresql+asyncpg://role@host/database?passfile=…
    database_url: str = ""
    #: Bring the database's schema up to date at start; off where a job of its own does that.
    migrate: bool = True
    #: PostgreSQL: roles to which `python -m services.<name>.main migrate` gives what they need, and no more: the one
    #: that the service works under, and the one that the checker reads under. Empty: none. See postgres_roles.py.
    service_role: str = ""
    checker_role: str = ""
    database_pool: int = Field(default=8, ge=1, le=100)
    statement_timeout_s: float = Field(default=5.0, gt=0, le=60)

    #: The authorities whose certificates are believed, and this process's own key and certificate; read again when they
    #: change (`runtime/grpc/tls.py`).
    ca_file: Path = Path("ca.pem")
    identity_file: Path = Path("identity.pem")
    #: The authorities of the other house: the acquirer's for those who charge cards, the merchants' for the acquirer.
    outside_ca_file: Path = Path("outside-ca.pem")
    #: Serve and call without TLS, for development: what is on the way can be read and changed by others.
    plaintext: bool = False
    #: Port on which the other services call, which show a certificate; 0 takes a free one. Not the acquirer's.
    internal_port: int = Field(default=0, ge=0, le=65_535)
    #: That port as it is written into the registry, where something stands in front; 0: the one listened on.
    advertise_internal_port: int = Field(default=0, ge=0, le=65_535)

    #: JSON Web Key Set of the public keys by which tokens are verified; read again when it changes.
    verify_key_file: Path = Path("verify.jwks")
    #: The tokens and callers that are revoked (`runtime/grpc/trust.py`); read again when it changes. Missing: none are.
    revoked_file: Path | None = None
    #: Folder of this service's tokens, `<name>.token` for each service that it calls; read again when they change.
    token_folder: Path = Path("tokens")

    #: Deadline of a call that brings none, and the longest that is honoured.
    default_deadline_s: float = Field(default=10.0, gt=0, le=_MOST_S)
    max_deadline_s: float = Field(default=60.0, gt=0, le=_MOST_S)
    #: How long a clerk waits in the queue of an order, if the call's deadline allows.
    lock_wait_s: float = Field(default=5.0, gt=0, le=_MOST_S)
    #: How long an execution holds its request before others may finish it. Longer than any healthy payment takes.
    lease_s: float = Field(default=5.0, gt=0, le=_MOST_S)
    #: How often the worker looks for payments left between two commits.
    recovery_interval_s: float = Field(default=0.5, gt=0, le=_MOST_S)
    #: Where the acquirer is, as host:port or [IPv6]:port; empty: no cards are taken.
    acquirer_address: str = ""
    #: Where the acquirer sends its notices to this instance, as host:port; empty: to the address in the registry.
    notify_address: str = ""
    #: How long a charge waits for the acquirer's answer, if the call's deadline allows; then its outcome is UNKNOWN.
    acquirer_timeout_s: float = Field(default=3.0, gt=0, le=_MOST_S)
    #: How often the acquirer is asked without an answer before people have to look. Pauses double, from 0.5 s to 5 s,
    #: so that 28 times are two minutes.
    acquirer_asks: int = Field(default=28, ge=1, le=1_000)
    #: How many tickets one customer may have open: not used, and not a day old.
    ticket_quota: int = Field(default=100, ge=1, le=_MOST)
    #: How long `prune` keeps requests and tickets that have ended (`retention.py`); and how often it looks,
    #: 0: once, and ends.
    retention_days: int = Field(default=30, ge=30, le=36_500)
    prune_every_h: float = Field(default=0, ge=0, le=8_760)
    #: How long a stopping server lets running calls finish.
    drain_s: float = Field(default=5.0, ge=0, le=_MOST_S)
    #: How many calls are executed at once. While half are, lists and sums of whole tables are refused.
    max_concurrent_calls: int = Field(default=512, ge=1, le=_MOST)
    #: What the calls of one caller (role and name) may cost at once, see `runtime/grpc/admission.py`: a read costs 1, a
    #: change 4, a list 32. A service has a larger budget, for it carries the calls of many.
    caller_budget: int = Field(default=256, ge=1, le=_MOST)
    service_budget: int = Field(default=1024, ge=1, le=_MOST)
    #: Within which a call's request must arrive after its headers.
    message_timeout_s: float = Field(default=5.0, gt=0, le=60)
    #: Calls and other streams that one connection may have open; a client's others wait on its side.
    max_streams_per_connection: int = Field(default=256, ge=1, le=_MOST)
    #: A connection without a call is closed after this time, pings or not; clients connect again when they call.
    idle_connection_s: float = Field(default=300.0, ge=1, le=_MOST_S)
    #: The largest message that is taken or sent; at least 1 MiB, since pages of lists are cut at half of that, and at
    #: most 1 GiB, since protobuf ends at 2.
    max_message_bytes: int = Field(default=1 << 20, ge=1 << 20, le=1 << 30)

    #: Currencies for which the ledger keeps the house accounts drawer, bank, acquirer and sales.
    currencies: Annotated[tuple[str, ...], NoDecode] = ("CNY", "EUR", "JPY", "USD")
    #: Guards that are off. For demonstrations only.
    guards_off: Annotated[tuple[str, ...], NoDecode] = ()
    #: Serve the failpoint service. For demonstrations and tests only.
    failpoints: bool = False

    @field_validator("currencies")
    @classmethod
    def _currencies(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_currency(code, "COUNTINGHOUSE_CURRENCIES") for code in codes)

    @field_validator("currencies", "guards_off", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("zookeeper")
    @classmethod
    def _understood(cls, value: str) -> str:
        return str(EnsembleAddress.parse(value))

    @field_validator("listen_host", "metrics_host")
    @classmethod
    def _host(cls, value: str) -> str:
        return parse_host(value)

    @field_validator("advertise_host")
    @classmethod
    def _callable(cls, value: str) -> str:
        host = parse_host(value) if value.strip() else ""
        if host in EVERYWHERE:
            raise ValueError(f"{host} cannot be called; name one address, or leave it empty")
        if "%" in host:
            raise ValueError(f"the scope in {host} means nothing to others; name an address without one")
        return host

    @field_validator("acquirer_address", "notify_address")
    @classmethod
    def _with_port(cls, value: str) -> str:
        if not value.strip():
            return ""
        if not re.search(r"[^:]:[0-9]+\s*$", value):
            raise ValueError("write host:port or [IPv6]:port")
        return str(ServerAddress.parse(value))

    @property
    def listen_address(self) -> str:
        """`host:port` to listen on, IPv6 in brackets."""
        return str(ServerAddress(self.listen_host, self.listen_port))

    @property
    def internal_address(self) -> str:
        """`host:port` to listen on for the other services."""
        return str(ServerAddress(self.listen_host, self.internal_port))

    @model_validator(mode="after")
    def _production_is_strict(self) -> Settings:
        guards = Guards.without(self.guards_off)
        if self.profile is Profile.PRODUCTION and guards.off:
            raise ValueError(
                f"the production profile refuses guards_off={','.join(guards.off)}; unset COUNTINGHOUSE_GUARDS_OFF"
            )
        if self.profile is Profile.PRODUCTION and self.failpoints:
            raise ValueError("the production profile refuses failpoints; unset COUNTINGHOUSE_FAILPOINTS")
        if self.profile is Profile.PRODUCTION and self.plaintext:
            raise ValueError("the production profile refuses plain text; unset COUNTINGHOUSE_PLAINTEXT")
        if self.profile is Profile.PRODUCTION and self.zookeeper_plaintext:
            raise ValueError("the production profile refuses plain text; unset COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT")
        return self

    @property
    def guards(self) -> Guards:
        """The guards that are on."""
        return Guards.without(self.guards_off)


class TracingSettings(BaseSettings):
    """Whether spans are sent, and where: the standard variables of OpenTelemetry. Without an endpoint there are none.

    The others are read by its SDK: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and its
    argument, OTEL_BSP_* for the queue, and of OTEL_EXPORTER_OTLP_*: HEADERS, TIMEOUT, COMPRESSION, CERTIFICATE,
    CLIENT_CERTIFICATE and CLIENT_KEY.
    """

    model_config = SettingsConfigDict(env_prefix="OTEL_", extra="ignore", frozen=True)

    #: The collector that takes OTLP over gRPC, as http://host:4317 or https://host:4317; the one for traces prevails.
    exporter_otlp_endpoint: str = ""
    exporter_otlp_traces_endpoint: str = ""
    #: Only `grpc` is supported; the one for traces prevails.
    exporter_otlp_protocol: str = "grpc"
    exporter_otlp_traces_protocol: str = ""
    #: Comma-separated; without `otlp` no spans are sent.
    traces_exporter: str = "otlp"
    #: `true` switches tracing off, whatever else is set.
    sdk_disabled: str = ""

    @property
    def endpoint(self) -> str:
        """Where spans are sent; empty: nowhere, and none are made."""
        wanted = "otlp" in (self.traces_exporter or "otlp").split(",") and self.sdk_disabled.strip().lower() != "true"
        return (self.exporter_otlp_traces_endpoint or self.exporter_otlp_endpoint).strip() if wanted else ""

    @model_validator(mode="after")
    def _can_be_sent(self) -> TracingSettings:
        if not self.endpoint:
            return self
        protocol = self.exporter_otlp_traces_protocol or self.exporter_otlp_protocol or "grpc"
        if protocol != "grpc":
            raise ValueError("spans are sent by gRPC only; set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc, and its port")
        if not _COLLECTOR.fullmatch(self.endpoint):
            raise ValueError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is http://host:port or https://host:port; a credential goes into "
                "OTEL_EXPORTER_OTLP_HEADERS"
            )
        return self
