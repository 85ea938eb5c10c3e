"""Options that take days."""

from server.domain.errors import OperatorError

DAY_S = 24 * 60 * 60
MOST_DAYS = 36_500


def seconds_of(days: float, option: str, *, least: float = 0) -> float:
    """The seconds of so many days. Raises OperatorError that names the option if these are no sensible days."""
    if not least <= days <= MOST_DAYS:
        raise OperatorError(f"{option} takes {least:g} to {MOST_DAYS} days.")
    return days * DAY_S
