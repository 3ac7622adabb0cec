"""The devices that a model is planned for: a catalogue, and the strings that choose from it."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfaccel.errors import StrategyError

if TYPE_CHECKING:
    from tfaccel.planner.operation_times import OperationTimer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOGUE = Path(__file__).parent / "devices.toml"
KINDS = ("gpu", "tpu", "cpu")
ALIASES = {"a100": "A100-80", "cpu": "cpu"}
_NEEDED = ("kind", "memory", "peak", "source", "date")
_RATES = ("bandwidth", "link", "network")
_PRICE = ("price", "price_source", "price_date")
_OPTIONAL = ("usable", *_RATES, "unconfirmed", *_PRICE)
_FIGURES = ("memory", "usable", *_RATES, "peak")


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as in the catalogue.
        kind: ``"gpu"``, ``"tpu"`` or ``"cpu"``.
        memory: bytes, as stated by the vendor.
        usable: bytes that a program may use.
        bandwidth: bytes/s of that memory; None if not measured.
        link: bytes/s that it sends to the others of its host, one direction; None as above.
        network: bytes/s that its host sends to another; None as above.
        peak: FLOP/s of dense matrix products for each precision it has.
        source: where the figures come from.
        date: when they were read.
        unconfirmed: the names of the figures that the source does not state.
        price: US dollars per hour of one device with its share of the host; None if unknown.
        price_source: where the price comes from; "" if it is unknown.
        price_date: when it was read; "" as above.
    """

    name: str
    kind: str
    memory: int
    usable: int
    bandwidth: float | None
    link: float | None
    network: float | None
    peak: Mapping[str, float]
    source: str
    date: str
    unconfirmed: tuple[str, ...] = ()
    price: float | None = None
    price_source: str = ""
    price_date: str = ""


@dataclass(frozen=True)
class Machines:
    """Equal devices on equal hosts.

    Attributes:
        device: each of them.
        hosts: how many machines.
        per_host: devices of each.
        timer: measures operations on them; None where only rates are known.
    """

    device: Device
    hosts: int
    per_host: int
    timer: OperationTimer | None = field(default=None, compare=False, repr=False)

    @property
    def count(self) -> int:
        """All devices."""
        return self.hosts * self.per_host

    def __str__(self) -> str:
        hosts = f"{self.hosts}x" if self.hosts > 1 else ""
        return f"{hosts}{self.per_host}x{self.device.name}"


def catalogue(file: Path | str | None = None) -> dict[str, Device]:
    """All devices by name.

    Args:
        file: a TOML file of the same form as ``devices.toml``, for the user's devices.

    Raises:
        StrategyError: when that file cannot be read, or a device in it is not complete.
    """
    found = _read(CATALOGUE)
    if file is not None:
        found |= _read(Path(file))
    return found


def parse(text: str, devices: Mapping[str, Device]) -> Machines:
    """Reads ``8xH100``, ``2x4xA100`` (two hosts of four), ``v5e-8``, ``4xcpu`` or ``here``.

    The local machine is measured, once. Logical CPUs, as in ``4xhere``, share its resources.

    Args:
        text: how many, of what.
        devices: as from `catalogue`.

    Raises:
        StrategyError: lists what is available.

    >>> print(parse("2x4xA100", catalogue()))
    2x4xA100-80
    >>> parse("v5e-8", catalogue()).count
    8
    """
    local = re.fullmatch(r"(?:([1-9]\d*)x)?here", text.strip().lower())
    if local is not None:
        return measured(int(local[1]) if local[1] else None)
    by_name = {name.lower(): device for name, device in devices.items()}
    wanted = text.strip().lower()
    tpu = re.fullmatch(r"(v\d+[a-z]*)-([1-9]\d*)", wanted)
    counted = re.fullmatch(r"(?:([1-9]\d*)x)?(?:([1-9]\d*)x)?([a-z].*)", wanted)
    hosts, per_host, name = 1, 1, wanted
    if tpu is not None and tpu[1] in by_name:
        per_host, name = int(tpu[2]), tpu[1]
    elif counted is not None:
        numbers = [int(n) for n in counted.groups()[:2] if n]
        hosts, per_host = (1, 1, *numbers)[-2:]
        name = counted[3]
    name = ALIASES.get(name, name).lower()
    device = here() if name == "cpu" and name not in by_name else by_name.get(name)
    if device is None:
        raise StrategyError(
            f"tfaccel: devices are {text!r}, expected a number and one of "
            f"{', '.join(devices)} or cpu, such as 8xH100, 2x4xA100 (two hosts of four) or v5e-8; "
            "others come from --device-file, and those of this machine are 'here'."
        )
    return Machines(device, hosts, per_host)


def here() -> Device:
    """A CPU device with the memory of this machine; its speed is unknown.

    Logical CPUs share the memory of their host.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", "cpu", memory, memory, None, None, None, {}, "this machine", "")


def measured(count: int | None = None) -> Machines:
    """The devices of this machine, with measured rates.

    Args:
        count: how many; None for all GPUs, or one CPU.

    Raises:
        StrategyError: when there are fewer GPUs, or nothing could be measured.
    """
    from tfaccel.planner import local_devices as measurement

    found = measurement.measured()
    count = count or found["count"]
    is_cpu = found["kind"] == "cpu"
    if not is_cpu and count > found["count"]:
        raise StrategyError(
            f"tfaccel: devices are '{count}xhere', and there are {found['count']} GPUs, expected "
            "at most as many; others are planned by their names."
        )
    share = count if is_cpu else 1
    device = Device(
        name="here",
        kind=found["kind"],
        memory=found["memory"],
        usable=found["memory"],
        bandwidth=found["bandwidth"] / share,
        link=found.get("link"),
        network=None,
        peak={key: value / share for key, value in found["peak"].items()},
        source=f"measured on {found['name']}",
        date=found["date"],
    )
    timer = _timer(measurement.cache_file("operations")) if is_cpu else None
    return Machines(device, 1, count, timer)


def _timer(file: Path) -> OperationTimer:
    from tfaccel.planner.operation_times import OperationTimer

    return OperationTimer(file)


def _read(file: Path) -> dict[str, Device]:
    try:
        tables = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StrategyError(
            f"tfaccel: {str(file)!r} cannot be read as a catalogue of devices ({error}), expected "
            "a TOML file in the form of tfaccel/planner/devices.toml."
        ) from error
    return {name: _device(name, table, file) for name, table in tables.items()}


def _device(name: str, table: Any, file: Path) -> Device:
    where = f"tfaccel: device {name!r} of {str(file)!r}"
    _check_keys(table, where)
    return Device(
        name=name,
        kind=table["kind"],
        memory=int(_number(table, "memory", "bytes", where)),
        usable=int(_number(table, "usable" if "usable" in table else "memory", "bytes", where)),
        peak={key: _number(table["peak"], key, "FLOP/s", where) for key in table["peak"]},
        source=str(table["source"]),
        date=str(table["date"]),
        unconfirmed=_unconfirmed(table, where),
        price=_price(table, where),
        price_source=str(table.get("price_source", "")),
        price_date=str(table.get("price_date", "")),
        **{k: _number(table, k, "bytes/s", where) if k in table else None for k in _RATES},
    )


def _check_keys(table: Any, where: str) -> None:
    """Raises an error for missing or unknown keys, or those of a wrong kind."""
    given = table if isinstance(table, dict) else {}
    missing = [key for key in _NEEDED if key not in given]
    unknown = sorted(set(given) - {*_NEEDED, *_OPTIONAL})
    if not missing and not unknown and given["kind"] in KINDS and isinstance(given["peak"], dict):
        return
    what = f"without {', '.join(missing)}" if missing else f"with {', '.join(unknown)}"
    if not missing and not unknown:
        what = f"of kind {given['kind']!r} with peak {given['peak']!r}"
    raise StrategyError(
        f"{where} is {what}, expected kind (gpu, tpu or cpu), memory, peak (a table of FLOP/s by "
        f"precision), source and date, and at most {', '.join(_OPTIONAL)} besides."
    )


def _number(table: Mapping[str, Any], key: str, unit: str, where: str) -> float:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise StrategyError(f"{where} has {key} = {value!r}, expected a positive number ({unit}).")
    return float(value)


def _price(table: Mapping[str, Any], where: str) -> float | None:
    """The price of a device, which has a source and a date."""
    given = [key for key in _PRICE if table.get(key, "") != ""]
    if not given:
        return None
    if len(given) < len(_PRICE):
        missing = " and ".join(key for key in _PRICE if key not in given)
        raise StrategyError(
            f"{where} has {' and '.join(given)} without {missing}, expected all three: a price in "
            "US dollars per hour, where it was read and when."
        )
    return _number(table, "price", "US dollars per hour", where)


def _unconfirmed(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of figures that were not found in the source."""
    names = table.get("unconfirmed", [])
    if not isinstance(names, list) or any(name not in _FIGURES for name in names):
        raise StrategyError(
            f"{where} has unconfirmed = {names!r}, expected a list of {', '.join(_FIGURES)}."
        )
    return tuple(names)
