"""A patch under transformers' pipelines: built as ever, attached to the model inside."""

from transformers import pipeline

from vlm_edit import Clamp, Patch, zoo

pairs = zoo.load_pairs()
image = pairs.open(1)  # a keycap on blue

# image-text-to-text, a LLaVA: four features of its first language layer stand for yellow.
model, processor = zoo.load_llava()
ask = pipeline("image-text-to-text", model=model, processor=processor, trust_remote_code=False)
yellow = Clamp([342, 110, 49, 501], value=8.0)
patch = Patch("language.0", zoo.load_dictionary("language.0"), yellow, tokens="image")


def answer():
    """What the pipeline says of the background."""
    text = "<image>\nwhat colour is the background?"
    (found,) = ask(images=image, text=text, generate_kwargs={"do_sample": False})
    return found["generated_text"].rpartition("?")[2].strip()


before = answer()
with patch.attach(ask.model) as attached:
    print("image-text-to-text:", [before, answer()])
print(attached.report())
print("removed, it answers as before:", answer() == before)

# zero-shot-image-classification, a CLIP: one feature of images' embeddings.
clip, processor = zoo.load_host()
classify = pipeline(
    "zero-shot-image-classification",
    model=clip,
    image_processor=processor.image_processor,
    tokenizer=processor.tokenizer,
    trust_remote_code=False,
)
labels = ["dog face", "red heart", "rocket"]


def scores():
    """The scores of three labels, in their order."""
    found = classify(image, candidate_labels=labels, hypothesis_template="a picture of {}")
    return [round({each["label"]: each["score"] for each in found}[label], 3) for label in labels]


before = scores()
patch = Patch("joint", zoo.load_dictionary("joint"), Clamp([7], value=9.0), tokens="image")
with patch.attach(clip) as attached:
    print("zero-shot-image-classification:", [before, scores()])
print(attached.report())
print("removed, it scores as before:", scores() == before)
