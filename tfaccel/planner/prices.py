"""What a candidate costs at the price of its device."""

from __future__ import annotations

from dataclasses import dataclass

from tfaccel.planner.device_catalogue import Device
from tfaccel.planner.estimate import Estimate

_HOUR = 3600  # seconds


@dataclass(frozen=True)
class Price:
    """US dollars of the devices that a candidate uses; others of their hosts are not counted.

    Attributes:
        hour: of all its devices, per hour.
        million_rows: of training on a million rows, at the step time of the catalogue, so that a
            real run costs more; None if the step time is unknown.
    """

    hour: float
    million_rows: float | None


def price(one: Estimate, device: Device, batch: int) -> Price | None:
    """The price of a candidate: price of a device x devices, and x seconds of a step / rows.

    Args:
        one: the candidate's estimate.
        device: each of its devices.
        batch: rows of the global batch.

    Returns:
        None for a device without a price.
    """
    if device.price is None:
        return None
    hour = device.price * one.candidate.devices
    if one.time is None:
        return Price(hour, None)
    return Price(hour, hour / _HOUR * one.time.total / batch * 1e6)


def dollars(amount: float | None) -> str:
    """Formats US dollars.

    >>> dollars(1234.5), dollars(0.526), dollars(0.000123), dollars(None)
    ('1,234.50', '0.53', '0.00012', '-')
    """
    if amount is None:
        return "-"
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}"
