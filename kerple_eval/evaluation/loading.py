"""The models of a run on their device: one at a time, beside the reference where there is one."""

from __future__ import annotations

from kerple_eval.evaluation.budget import RunBudget
from kerple_eval.evaluation.plan import PlannedModel, RunPlan
from kerple_eval.evaluation.ranks import SingleProcess
from kerple_eval.models.base import LanguageModel
from kerple_eval.records.run import Run


class LoadedModels:
    """``reference``: another model than those that are scored, once it is loaded; it is first, and stays."""

    def __init__(self, run: Run, plan: RunPlan, ranks: SingleProcess) -> None:
        self.plan = plan
        self.ranks = ranks
        self.budget = RunBudget(run)
        self.reference: LanguageModel | None = None
        self._model: LanguageModel | None = None
        self._planned: PlannedModel | None = None

    def load(self, planned: PlannedModel) -> LanguageModel:
        """The model; the last one's memory goes before it is loaded."""
        other = None if self.plan.reference is None else self.plan.reference.model
        if other is not None and self.reference is None:
            self.reference = self.ranks.load(
                other.checkpoint, self._argument(other), self.plan.device, other.dtype, "reference"
            )
        if self._model is None or self._planned is not planned:
            self._model = self._planned = None
            self._model = self.reference if planned is other else self._from_disk(planned)
            self._planned = planned
            assert self._model is not None
            self.budget.choose(self._model, self.plan.longest)
        return self._model

    def _from_disk(self, planned: PlannedModel) -> LanguageModel:
        argument = self._argument(planned)
        return self.ranks.load(planned.checkpoint, argument, self.plan.device, planned.dtype)

    def _argument(self, planned: PlannedModel) -> str:
        """The words that name it to the other ranks."""
        if any(model is planned for model in self.plan.models):
            return self.plan.provenance.models[planned.label]
        assert self.plan.reference is not None
        return self.plan.reference.argument
