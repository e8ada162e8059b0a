"""A serving loop: workers on one host, batches of requests, each under a patch of its own."""

import queue
import threading
from concurrent.futures import Future
from contextlib import nullcontext

import torch

from vlm_edit import Clamp, Patch, zoo
from vlm_edit.patches import attach_rows

host, processor = zoo.load_llava()
pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("language.0")
COLOURS = {
    "yellow": [342, 110, 49, 501],
    "blue": [334, 296, 282, 423],
    "green": [49, 501, 482, 193],
}
PATCHES = {
    name: Patch("language.0", dictionary, Clamp(features, value=8.0), tokens="image")
    for name, features in COLOURS.items()
}
requests = queue.Queue()


def answer(batch):
    """Answers to (image, question, patch or None), each row of the batch under its own patch."""
    images, questions, patches = zip(*batch, strict=True)
    text = [f"<image>\n{question}" for question in questions]
    inputs = processor(
        images=list(images), text=text, return_tensors="pt", padding=True, padding_side="left"
    )
    # scope="thread": this worker's forwards only, whatever the others are serving meanwhile.
    patched = attach_rows(host, patches, scope="thread") if any(patches) else nullcontext()
    with patched:
        ids = host.generate(**inputs, do_sample=False, max_new_tokens=12)
    answers = processor.batch_decode(ids, skip_special_tokens=True)
    return [text.rpartition("?")[2].strip() for text in answers]


def work(size=4):
    """A worker: takes what has come in, up to a batch, until it is told to stop."""
    while (first := requests.get()) is not None:
        batch = [first]
        while len(batch) < size:
            try:
                other = requests.get_nowait()
            except queue.Empty:
                break
            if other is None:
                requests.put(None)
                break
            batch.append(other)
        try:
            for (_, future), text in zip(batch, answer([ask for ask, _ in batch]), strict=True):
                future.set_result(text)
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)


def submit(image, question, patch=None):
    """What a client calls; the future's result is the answer."""
    future = Future()
    requests.put(((image, question, patch), future))
    return future


torch.set_num_threads(1)
numbers, names = range(12), [None, *PATCHES]
asked = [
    (pairs.open(number), question, PATCHES.get(names[number % len(names)]))
    for number in numbers
    for question in ("what colour is the background?", "what is it?")
]
alone = [answer([ask])[0] for ask in asked]

workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
served = [submit(*ask) for ask in asked]
answers = [future.result() for future in served]
for _ in workers:
    requests.put(None)
for worker in workers:
    worker.join()

print("the first image under no patch and each of three:")
for name, patch in zip(names, [None, *PATCHES.values()], strict=True):
    print(f"{name!s:8}", answer([(asked[0][0], asked[0][1], patch)]))
print(f"{len(answers)} requests served by {len(workers)} workers")
print("each as if it had come alone:", answers == alone)
