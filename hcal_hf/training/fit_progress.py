"""Shows the progress of fitting a head with several strengths."""

from collections.abc import Callable

from ..progress_bar import progress_bar


class FitProgress:
    """Shows a progress bar over several fits: the strength and the loss of the present one, and the remaining time."""

    def __init__(self, number: int, max_iterations: int, is_shown: bool):
        self.max_iterations, self.started = max_iterations, 0
        self.bar = progress_bar(
            total=number,
            desc="Fitting the head",
            disable=not is_shown,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]",
        )

    def start(self, strength: float) -> Callable[[float], None]:
        """Begins the next fit. Returns a function that takes each loss of it."""
        self.bar.update(self.started - self.bar.n)
        self.started += 1
        evaluations = 0

        def show(loss: float) -> None:
            nonlocal evaluations
            evaluations += 1
            self.bar.set_postfix_str(f"C = {strength:g}, step {evaluations}, loss {loss:.4f}", refresh=False)
            share = self.started - 1 + min(evaluations / self.max_iterations, 0.99)
            self.bar.update(share - self.bar.n)

        return show

    def close(self) -> None:
        self.bar.close()


__all__ = ["FitProgress"]
