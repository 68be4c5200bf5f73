"""What must be known of the losses of broadcasts, reckoned from what was said."""

from dataclasses import dataclass

from starlette_channels.pubsub.relay.sequence import News
from tests.simulation.network import Letter

MARK_SECONDS = (1.0, 3.0, 6.0)
FORGET_SECONDS = sum(MARK_SECONDS)
KEEP_SECONDS = 2 * FORGET_SECONDS


@dataclass
class Account:
    """How far another life's broadcasts are known: heard, or said to be lost."""

    total: int
    hole: range = range(0)
    """The numbers that were lost last."""


class Accounts:
    """What a node knows of the broadcasts of all others."""

    def __init__(self, name: str, born: float) -> None:
        self._name, self._born = name, born
        self._accounts: dict[bytes, Account] = {}

    def total(self, life: bytes) -> int | None:
        """Up to which number all is known of a life."""
        account = self._accounts.get(life)
        return None if account is None else account.total

    def take(self, letter: Letter, news: News | None, lost: int, sent: float, late: float, *, is_known: bool) -> None:
        """See that what the relay makes of a letter is what is true.

        `news` is what a message is to it, `sent` is when it was sent, and `late` by how much the relay believes it to
        be younger. The relay knows the life, or has not heard it yet, or has forgotten it.
        """
        total = letter.before + letter.stamp.number
        first = total - 1 if news is not None else total
        account = self._accounts.get(letter.life)
        if not is_known:
            if account is not None and total <= account.total:
                return  # it was on its way for longer than anybody remembers
            self._check_first(letter, lost, first, sent, late)
            account = self._accounts[letter.life] = Account(first - lost)
        assert account is not None
        where = f"{self._name} at {account}: {letter}"
        if news is not None:
            assert int(letter.body) == total, where
            assert (news is News.FRESH) == (total > account.total), f"{where} is {news}"
            assert news is News.LATE or total not in account.hole, f"{where} is {news}"
        self._reckon(account, letter, total, lost, first, where)
        if total >= account.total and news in (News.FRESH, None):
            account.total = total

    def _check_first(self, letter: Letter, lost: int, first: int, sent: float, late: float) -> None:
        """Of a life that was not heard before, all that is missing of a series is lost that began after this one did.

        If the series is older, the message before is lost that was said after that.
        """
        missing = first - letter.before
        previous = 1 if missing and sent - letter.stamp.quiet >= self._born else 0
        where = f"{self._name}, born {self._born}, hears for the first time {letter}, {late} late: {lost} lost"
        if sent - letter.stamp.age >= self._born:
            assert lost == missing, where
        elif sent - letter.stamp.age + late < self._born:
            assert previous <= lost <= 1, where
            assert not lost or sent - letter.stamp.quiet + late >= self._born, where
        else:
            assert previous <= lost <= missing, where

    def _reckon(self, account: Account, letter: Letter, total: int, lost: int, first: int, where: str) -> None:
        """What is missing between what was known and this letter is lost; of an earlier epoch nobody is told."""
        known = max(account.total, letter.before)
        assert lost == max(0, first - known), f"{where}: {lost} are said to be lost"
        if total > account.total and (lost or letter.before >= account.total):
            account.hole = range(known + 1, first + 1)
