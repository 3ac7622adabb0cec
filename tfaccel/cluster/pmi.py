"""PMI-1: how the ranks of an MPI library find each other when no `mpiexec` has started them.

Over the socket PMI_FD, MPICH uses its process manager as a key-value table, into which each rank
puts its addresses, and for barriers. The whole protocol is a dozen lines of text
(https://wiki.mpich.org/mpich/index.php/PMI-1_Wire_Protocol), so workers that already know each
other's hosts do not need an MPI launcher.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_MAX_BYTES = 1024  # of a value; MPICH itself splits longer addresses


@dataclass
class KeyValueStore:
    """The table of one job, and the ranks that wait in its barrier.

    Attributes:
        size: number of ranks.
        name: of the table, unique to each job: MPICH names shared memory after it.
        values: what the ranks have put.
        waiting: ranks in the barrier.
        lost: ranks that barriers no longer wait for.
    """

    size: int
    name: str = "kvs"
    values: dict[str, str] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)

    def answer(self, rank: int, line: str) -> dict[int, str]:
        """Answers one request.

        Args:
            rank: the requesting rank.
            line: the request, such as ``"cmd=get kvsname=kvs key=hostname[0]"``.

        Returns:
            The answers to send now, by rank.

        >>> KeyValueStore(size=2).answer(0, "cmd=get_universe_size")
        {0: 'cmd=universe_size size=2 rc=0'}
        """
        request = dict(word.split("=", 1) for word in line.split() if "=" in word)
        command = request.get("cmd", "")
        if command == "barrier_in":
            return self._barrier(rank)
        return {rank: self._answer(command, request)}

    def lose(self, rank: int) -> dict[int, str]:
        """Drops a rank from barriers; the answers for ranks that waited only for it."""
        self.lost.add(rank)
        return self._open() if self.waiting else {}

    def _barrier(self, rank: int) -> dict[int, str]:
        self.waiting.add(rank)
        return self._open()

    def _open(self) -> dict[int, str]:
        if len(self.waiting | self.lost) < self.size:
            return {}
        all_here, self.waiting = self.waiting, set()
        return dict.fromkeys(sorted(all_here), "cmd=barrier_out rc=0")

    def _answer(self, command: str, request: dict[str, str]) -> str:
        if command == "put":
            self.values[request.get("key", "")] = request.get("value", "")
            return "cmd=put_result rc=0 msg=success"
        if command == "get":
            value = self.values.get(request.get("key", ""))
            if value is None:
                return "cmd=get_result rc=-1 msg=key_not_found value=unknown"
            return f"cmd=get_result rc=0 msg=success value={value}"
        fixed = {
            "init": "cmd=response_to_init pmi_version=1 pmi_subversion=1",
            "get_maxes": f"cmd=maxes kvsname_max=64 keylen_max=64 vallen_max={_MAX_BYTES}",
            "get_appnum": "cmd=appnum appnum=0",
            "get_my_kvsname": f"cmd=my_kvsname kvsname={self.name}",
            "get_universe_size": f"cmd=universe_size size={self.size}",
            "finalize": "cmd=finalize_ack",
        }
        if command in fixed:
            return f"{fixed[command]} rc=0"
        return f"cmd={command} rc=-1 msg=not_supported"
