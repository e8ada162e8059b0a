"""A CLIP behind a server, threaded and async: each request under the patches that it names."""

import asyncio
from typing import Annotated

import httpx
import torch
from fastapi import FastAPI, Query

from vlm_edit import Clamp, Host, Patch, measure, zoo
from vlm_edit.patches import PatchSet, attached

torch.set_num_threads(1)
model, processor = zoo.load_host()  # yours: any CLIPModel and its processor
pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("joint")
LABELS = ["dog face", "red heart", "rocket"]
found = measure(Host.of(model, processor), pairs.select(range(256)), dictionary, progress=False)
# The three features that say most of images, each as strong as it gets.
top = found.top("vision", 3)
patches = PatchSet(
    model,
    {
        f"feature-{feature}": Patch(
            "joint", dictionary, Clamp(feature, quantile=1.0, of=found), tokens="image"
        )
        for feature in top
    },
)
app = FastAPI()
Names = Annotated[list[str], Query()]


def scores(picture):
    """Score labels for a picture: the code of the server as it was."""
    inputs = processor(text=LABELS, images=pairs.open(picture), return_tensors="pt", padding=True)
    with torch.no_grad():
        return [round(p, 4) for p in model(**inputs).logits_per_image.softmax(-1)[0].tolist()]


@app.get("/threaded/{picture}")
def threaded(picture: int, patch: Names = [], strength: float = 1.0):  # noqa: B006
    """FastAPI runs it in a thread of its own: the patch is on in this thread alone."""
    with patches.attach(patch, strength, scope="thread"):
        return scores(picture)


@app.get("/async/{picture}")
async def in_context(picture: int, patch: Names = [], strength: float = 1.0):  # noqa: B006
    """All requests share a thread, and take turns at each ``await``: it is on in this context."""
    with patches.attach(patch, strength, scope="context"):
        await asyncio.sleep(0.001)  # others run, under other patches
        return await asyncio.to_thread(scores, picture)


async def main():
    """Ask one after the other, then both ways at once."""
    names = ["", *patches.names]
    asked = [
        (way, picture, {"patch": name} if name else {})
        for way in ("threaded", "async")
        for picture in range(6)
        for name in names
    ]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

        async def ask(way, picture, request):
            return (await client.get(f"/{way}/{picture}", params=request)).json()

        alone = [await ask(*each) for each in asked]
        together = await asyncio.gather(*(ask(*each) for each in asked))
    half = len(asked) // 2
    for name, found in zip(names, alone, strict=False):
        print(f"{name or 'plain'}:", dict(zip(LABELS, found, strict=True)))
    print("threaded and async, the same scores:", alone[:half] == alone[half:])
    print(f"{len(together)} requests at once, each as if it had come alone:", together == alone)
    patches.close()
    print("left on the host:", attached(model))


if __name__ == "__main__":
    asyncio.run(main())
