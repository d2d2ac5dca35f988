"""``Watch``: a model scored while it trains."""

from __future__ import annotations

from kerple_eval.api.run import Run, with_reports
from kerple_eval.evaluation import watch


class Watch(watch.Watch):
    __doc__ = watch.Watch.__doc__

    @property
    def run(self) -> Run:
        """The run so far.

        Raises:
            UserError: no step has been scored yet.
        """
        return with_reports(super().run)
