"""Why a TPU cannot be used, and what to do: one line per failure."""

from __future__ import annotations

import re

from tfaccel.cluster.tpu_address import TpuAddress
from tfaccel.installed import INSTALL_TPU

# Messages of TensorFlow or Google Cloud, and what to do about them; the first match counts.
_KNOWN = (
    (
        r"Missing runtime dependency on the Google API client",
        "the Google API client is missing: pip install google-api-python-client google-auth",
    ),
    (
        r'state: "(?P<state>\w+)"',
        "it is {state}: wait until `gcloud compute tpus tpu-vm describe` reports READY; one that "
        "was PREEMPTED or TERMINATED must be recreated",
    ),
    (
        r"HttpError 404|was not found|notFound",
        "no TPU of that name was found: check tpu, tpu_zone and tpu_project",
    ),
    (
        r"HttpError 40[13]|[Pp]ermission|credentials",
        "permission denied by Google Cloud: run `gcloud auth application-default login`, or give "
        "the service account the role TPU Viewer",
    ),
    (
        r"metadata\.google|compute metadata|urlopen error|Name or service not known",
        "this machine is not in Google Cloud, so project and zone are unknown: "
        "give tpu_zone and tpu_project",
    ),
    (
        r"Could not lookup TPU metadata",
        "no response from Google Cloud: check tpu, tpu_zone, tpu_project and the network",
    ),
    (
        r"TPUs not found in the cluster|No TPUs with the specified names|list index out of range|"
        r"Failed to connect to the TPU driver|no TPU",
        "no TPU is in this machine, or another process holds it: run on a TPU VM, one process at a "
        "time, or name a TPU with tpu, tpu_zone and tpu_project",
    ),
    (
        r"Deadline|timed out|Timed out|UNAVAILABLE|failed to connect",
        "no response: it must be running, with the same TensorFlow, and port 8470 must be "
        "reachable",
    ),
)


def explain(address: TpuAddress, reason: BaseException) -> str:
    """One line on why `address` cannot be used.

    >>> explain(TpuAddress("mine"), RuntimeError('TPU "mine" is not yet ready; state: "CREATING"'))
    "tfaccel: TPU 'mine' from tpu cannot be used; it is CREATING: wait until ..."
    """
    text = str(reason)
    for pattern, advice in _KNOWN:
        match = re.search(pattern, text)
        if match:
            return f"tfaccel: {address} cannot be used; {advice.format(**match.groupdict())}."
    first = (text.splitlines() or [""])[0] or type(reason).__name__
    return (
        f"tfaccel: {address} cannot be used ({first}); expected a TPU VM or the name of a running "
        f"TPU, and there {INSTALL_TPU}."
    )
