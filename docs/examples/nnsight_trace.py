"""A patch and nnsight: a trace that sees what the patch did, and intervenes on top of it."""

import nnsight
import torch

from vlm_edit import Clamp, Patch, zoo
from vlm_edit.hooks import tracing

host, processor = zoo.load_llava()
text = "<image>\nwhat colour is the background?"
inputs = processor(images=zoo.load_pairs().open(1), text=text, return_tensors="pt")  # on blue
dictionary, features = zoo.load_dictionary("language.0"), [49, 501, 482, 193]
patch = Patch("language.0", dictionary, Clamp(features, value=8.0), tokens="image")
model = nnsight.NNsight(host)


def said(logits):
    """The word that comes next."""
    return processor.decode(logits[0, -1:].argmax(-1)).strip()


with torch.no_grad(), model.trace(**inputs):
    plain = tracing.at(model, "language.0").output.save()
    logits = model.output.logits.save()
print("plain:", said(logits))

with torch.no_grad(), patch.attach(model, via="nnsight") as attached:
    with model.trace(**inputs):
        edited = tracing.at(model, "language.0").output.save()
        later = tracing.at(model, "language.3").output.save()
        logits = model.output.logits.save()
    print("patched:", said(logits))
    print("the host's own call, the same bits:", torch.equal(host(**inputs).logits, logits))
    # The trace's own interventions come on top: here they take the patch's change out again.
    with model.trace(**inputs):
        site = tracing.at(model, "language.0")
        site.output = site.output - (edited - plain)
        undone = model.output.logits.save()
print(attached.report())
print("patched, and its change taken out in the trace:", said(undone))
moved = (edited - plain).norm(dim=-1)[0] > 0
print("tokens that the trace saw moved:", int(moved.sum()))
