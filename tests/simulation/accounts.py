"""What must be known of the losses of broadcasts, reckoned from what was said."""

from dataclasses import dataclass

from starlette_channels.brokers.gaps import News
from tests.simulation.network import Letter

MARK_SECONDS = (1.0, 3.0, 6.0)
FORGET_SECONDS = sum(MARK_SECONDS)
KEEP_SECONDS = 2 * FORGET_SECONDS


@dataclass
class Account:
    """How far another life's broadcasts are known: heard, or said to be lost."""

    total: int
    when: float
    hole: range = range(0)
    """The numbers that were lost last."""


class Accounts:
    """What a node knows of the broadcasts of all others."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._accounts: dict[bytes, Account] = {}

    def total(self, life: bytes) -> int | None:
        """Up to which number all is known of a life."""
        account = self._accounts.get(life)
        return None if account is None else account.total

    def take(self, letter: Letter, news: News | None, lost: int, now: float) -> None:
        """See that what the relay makes of a letter is what is true; `news` is what a message is to it."""
        total = letter.before + letter.stamp.number
        first = total - 1 if news is not None else total  # nobody here could have heard what was said before
        account = self._accounts.get(letter.life)
        if account is None or now - account.when > KEEP_SECONDS:
            account = self._accounts[letter.life] = Account(first, now)
        where = f"{self._name} at {account}: {letter}"
        if news is not None:
            assert int(letter.body) == total, where
            assert (news is News.FRESH) == (total > account.total), f"{where} is {news}"
            assert news is News.LATE or total not in account.hole, f"{where} is {news}"
        self._reckon(account, letter, total, lost, first, where)
        if total >= account.total and news in (News.FRESH, None):
            account.total, account.when = total, now
        if letter.kind == "end":
            del self._accounts[letter.life]

    def _reckon(self, account: Account, letter: Letter, total: int, lost: int, first: int, where: str) -> None:
        """What is missing between what was known and this letter is lost; of an earlier epoch nobody is told."""
        known = max(account.total, letter.before)
        assert lost == max(0, first - known), f"{where}: {lost} are said to be lost"
        if total > account.total and (lost or letter.before >= account.total):
            account.hole = range(known + 1, first + 1)
