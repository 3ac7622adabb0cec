"""Which devices a strategy gets: a pure choice among the available ones."""

from __future__ import annotations

from collections.abc import Sequence

from tfaccel.errors import StrategyError
from tfaccel.hardware import Device, count


def kind_of(
    available: Sequence[Device], device_type: str, devices: int | tuple[str, ...] | None
) -> str:
    """The kind of device to use.

    Args:
        available: the devices of this process.
        device_type: as in `Options`.
        devices: as in `Options`; names decide the kind.

    Returns:
        ``"CPU"``, ``"GPU"`` or ``"TPU"``.

    >>> kind_of([Device("CPU", 0), Device("GPU", 0)], "auto", None)
    'GPU'
    """
    if isinstance(devices, tuple):
        kind = devices[0].partition(":")[0]
        if device_type not in ("auto", kind.lower()):
            raise StrategyError(
                f"tfaccel: devices are {', '.join(devices)} and device_type is {device_type!r}; "
                "expected the same kind; leave device_type out."
            )
        return kind
    if device_type != "auto":
        return device_type.upper()
    return next((kind for kind in ("TPU", "GPU") if count(available, kind)), "CPU")


def pick(
    available: Sequence[Device],
    device_type: str = "auto",
    devices: int | tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """The names of the devices to use.

    CPUs may be more than there are: the caller makes logical ones.

    Raises:
        StrategyError: when a requested device is missing.

    >>> pick([Device("CPU", 0)], "cpu", 2)
    ('CPU:0', 'CPU:1')
    """
    kind = kind_of(available, device_type, devices)
    present = count(available, kind)
    if isinstance(devices, tuple):
        names = devices
    elif kind == "CPU":
        names = tuple(f"CPU:{i}" for i in range(devices or max(present, 1)))
    else:
        if not present:
            raise StrategyError(_missing(kind, available))
        names = tuple(f"{kind}:{i}" for i in range(devices or present))
    absent = [n for n in names if int(n.partition(":")[2]) >= present] if kind != "CPU" else []
    if absent:
        raise StrategyError(
            f"tfaccel: {', '.join(absent)} was requested and this machine has {present} {kind}"
            f"{'' if present == 1 else 's'}; request devices={max(present, 1)} or fewer."
        )
    return names


def _missing(kind: str, available: Sequence[Device]) -> str:
    visible = ", ".join(device.name for device in available) or "nothing"
    return (
        f"tfaccel: a {kind} was requested and TensorFlow sees {visible}; see `tfaccel env` for how "
        "TensorFlow was built, or request device_type='cpu'."
    )
