"""Bias: what a host makes of groups, which features carry it, and edits that lessen it.

questions = Questions("gender", {"man": ["a photo of a man"], "woman": ["a photo of a woman"]})
bench = Bench.read(model, processor, pairs, questions)
tune, test = split(pairs, by="person")
mitigation = mitigate(bench.part(tune), dictionary)
outcomes = {"nothing": bench.part(test).plain, "edit": bench.part(test).edited(mitigation.patch)}
print(effect_table({name: Outcome.of(study) for name, study in outcomes.items()}, "Gender"))
"""

from vlm_edit.tasks.bias.baselines import bend as bend
from vlm_edit.tasks.bias.baselines import difference_in_means as difference_in_means
from vlm_edit.tasks.bias.baselines import least_squares_erasure as least_squares_erasure
from vlm_edit.tasks.bias.baselines import modality_centring as modality_centring
from vlm_edit.tasks.bias.baselines import prompt_difference as prompt_difference
from vlm_edit.tasks.bias.bench import Bench
from vlm_edit.tasks.bias.data import read_any as read_any
from vlm_edit.tasks.bias.mitigation import Evidence as Evidence
from vlm_edit.tasks.bias.mitigation import Mitigation as Mitigation
from vlm_edit.tasks.bias.mitigation import Way as Way
from vlm_edit.tasks.bias.mitigation import edit, mitigate, select
from vlm_edit.tasks.bias.mitigation import off_chance as off_chance
from vlm_edit.tasks.bias.mitigation import off_probe as off_probe
from vlm_edit.tasks.bias.outcome import Outcome, cost_table, effect_table
from vlm_edit.tasks.bias.page import write_page as write_page
from vlm_edit.tasks.bias.study import Questions, Study, split

__all__ = [
    "Bench",
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
