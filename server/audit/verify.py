"""Reads a whole trail and its seals, and says what is wrong with it and up to where it is whole."""

from dataclasses import dataclass, field

from server.audit.chain import BadLine, Head, Secrets, before_all, checked
from server.audit.places import Line, Place


@dataclass(slots=True)
class ChainReport:
    """`records` are whole, from the first one that is still there. `sealed` of the chain's records are under a seal.

    `sealed_at` is the time of the last seal that holds. `fault` says what is wrong and where. `crash` tells of traces
    that a process leaves that is killed.
    """

    chain: str
    records: int = 0
    sealed: int = 0
    sealed_at: str | None = None
    unsealed: int = 0
    dropped: int = 0
    fault: str | None = None
    crash: str | None = None
    ended: bool = False


@dataclass(slots=True)
class Report:
    chains: list[ChainReport] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return all(chain.fault is None for chain in self.chains)


@dataclass(slots=True)
class _Sealed:
    """What the seals say of one chain: heads by number of records, and heads of what was dropped by their number."""

    seals: dict[int, tuple[str, str]] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    fault: str | None = None
    torn: bool = False


def verify(secrets: Secrets, records: Place, seals: Place) -> Report:
    """Check everything. Raises OSError if a place cannot be read.

    Servers may write meanwhile, and drop what is old. So what looks like a fault is looked at again.
    """
    report = _verified(secrets, records, seals)
    return report if report.whole else _verified(secrets, records, seals)


def _verified(secrets: Secrets, records: Place, seals: Place) -> Report:
    # Seals first: a running server may write more records meanwhile, but never takes any away.
    sealed = _read_seals(secrets, seals)
    there = records.chains()
    links: dict[str, list[Head]] = {}
    reports: dict[str, ChainReport] = {}
    macs: dict[str, dict[int, str]] = {}
    for chain in there:
        about = sealed.get(chain, _Sealed())
        reports[chain] = report = ChainReport(chain)
        macs[chain] = _check_chain(secrets.records, records, report, about, links)
        _check_seals(report, about, macs[chain])
    for chain, about in sealed.items():
        if chain not in reports and (fault := _why_missing(about)) is not None:
            reports[chain] = ChainReport(chain, fault=fault)
    for chain, heads in links.items():
        for head in heads:
            dropped = max(sealed.get(head.chain, _Sealed()).dropped, default=-1)
            if head.n <= dropped or macs.get(head.chain, {}).get(head.n) == head.mac:
                continue
            report = reports.setdefault(head.chain, ChainReport(head.chain))
            report.fault = report.fault or f"record {head.n} was there when {chain} began, and is missing now"
    return Report([reports[chain] for chain in sorted(reports)])


def _check_chain(
    key: bytes, records: Place, report: ChainReport, about: _Sealed, links: dict[str, list[Head]]
) -> dict[int, str]:
    """Read the lines of a chain into `report`. Returns the MACs of those that are whole, by number."""
    macs: dict[int, str] = {}
    head: Head | None = None
    torn: Line | None = None
    for line in records.lines(report.chain):
        if torn is not None:
            report.fault = f"{torn.where}: the line is cut off, and others follow"
            return macs
        if not line.whole:
            torn = line
            continue
        try:
            if head is None:
                head = _start(key, report.chain, line, about)
            body, head = checked(key, head, line.content)
        except BadLine as bad:
            report.fault = f"{line.where}: {bad}"
            return macs
        if body["n"] == 0:
            links[report.chain] = [Head(each["chain"], each["n"], each["mac"]) for each in body.get("heads", ())]
        report.records += 1
        report.ended = body.get("event") == "end"
        macs[head.n] = head.mac
    if torn is not None:
        report.crash = f"{torn.where}: the last line is cut off: the process was killed while it wrote, or still writes"
    return macs


def _start(key: bytes, chain: str, line: Line, about: _Sealed) -> Head:
    """The head that the first line must follow: none, or that of what was dropped."""
    heads = [before_all(key, chain), *(Head(chain, n, mac) for n, mac in sorted(about.dropped.items()))]
    for head in heads:
        try:
            checked(key, head, line.content)
        except BadLine:
            continue
        return head
    return heads[0]


def _check_seals(report: ChainReport, about: _Sealed, macs: dict[int, str]) -> None:
    first = min(macs, default=max(about.dropped, default=-1) + 1)
    last = max(macs, default=first - 1)
    report.dropped = first
    for count, (mac, time) in sorted(about.seals.items()):
        if count <= first or macs.get(count - 1) == mac:
            report.sealed, report.sealed_at = count, time
            continue
        if report.fault is None:
            said = f"a seal of {time} counts {count} records, and only {last + 1} are there: records were cut off"
            wrong = f"record {count - 1} is not the one that was sealed at {time}"
            report.fault = said if count - 1 > last else wrong
        break
    report.unsealed = max(0, last + 1 - report.sealed)
    if about.fault is not None:
        report.fault = report.fault or about.fault
    elif not about.seals and report.fault is None:
        if len(macs) > 1:
            report.fault = "all its seals are missing"
        else:
            report.crash = report.crash or "the process was killed before its first seal"
    if report.fault is not None:
        report.crash = None
    elif about.torn:
        report.crash = report.crash or "its last seal is cut off: the process was killed while it sealed"


def _why_missing(about: _Sealed) -> str | None:
    """What is wrong with a chain that has no file. None if all of it was dropped."""
    sealed, dropped = max(about.seals, default=0), max(about.dropped, default=-1) + 1
    if about.fault is not None:
        return about.fault
    return None if sealed <= dropped else f"all its files are missing; {sealed} records were sealed"


def _read_seals(secrets: Secrets, seals: Place) -> dict[str, _Sealed]:
    found: dict[str, _Sealed] = {}
    for chain in seals.chains():
        about = found.setdefault(chain, _Sealed())
        head = before_all(secrets.seals, chain)
        for line in seals.lines(chain):
            if about.torn or about.fault:
                about.fault = about.fault or f"seals: {line.where}: lines follow on one that is cut off"
                break
            if not line.whole:
                about.torn = True
                continue
            try:
                body, head = checked(secrets.seals, head, line.content)
            except BadLine as bad:
                about.fault = f"seals: {line.where}: {bad}"
                break
            if body["event"] == "dropped":
                found.setdefault(body["chain"], _Sealed()).dropped[body["through"]] = body["head"]
            else:
                about.seals[body["records"]] = (body["head"], body["time"])
    return found
