"""The progress bar: on rank 0, over the samples of all processes."""

from tqdm import tqdm

from lmms_eval_vreason.run.processes import Team


class Progress:
    """Counts finished samples and their tokens over all processes, and draws them.

    Attributes:
        total: Samples of all processes.
    """

    def __init__(self, team: Team, total: int, finished: int) -> None:
        """Args: ``total``, samples of all processes; ``finished``, those of them that the journal has answered."""
        self.total = total
        self._team, self._finished = team, finished
        self._bar = tqdm(total=total, initial=finished, desc="V-Reason", unit="sample", disable=team.rank != 0)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def add(self, tokens: int) -> None:
        """One finished sample of this process, with its generated tokens."""
        self._team.count("tokens", tokens)
        self._team.count("done")
        self.draw()

    def draw(self) -> None:
        """Brings the bar to what all processes have done."""
        if self._bar.disable:
            return
        self._bar.update(self._team.count("done", 0) + self._finished - self._bar.n)
        tokens = self._team.count("tokens", 0)
        if elapsed := self._bar.format_dict["elapsed"]:
            self._bar.set_postfix_str(f"{tokens} tokens, {tokens / elapsed:.1f} tokens/s", refresh=False)
