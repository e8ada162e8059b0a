"""Bias: what a host makes of groups, which features carry it, and edits that lessen it.

asked = Questions("gender", {"man": ["a photo of a man"], "woman": ["a photo of a woman"]})
bench = Bench.read(model, processor, pairs, asked)
tune, test = split(pairs, by="person")
found = mitigate(bench.part(tune), dictionary)
outcomes = {"nothing": bench.part(test).plain, "edit": bench.part(test).edited(found.patch)}
print(effect_table({name: Outcome.of(study) for name, study in outcomes.items()}, "Gender"))
"""

from vlm_edit.tasks.bias.bench import Bench
from vlm_edit.tasks.bias.mitigation import Evidence, Mitigation, edit, mitigate, select
from vlm_edit.tasks.bias.outcome import Outcome, cost_table, effect_table
from vlm_edit.tasks.bias.study import Questions, Study, split

__all__ = [
    "Bench",
    "Evidence",
    "Mitigation",
    "Outcome",
    "Questions",
    "Study",
    "cost_table",
    "edit",
    "effect_table",
    "mitigate",
    "select",
    "split",
]
