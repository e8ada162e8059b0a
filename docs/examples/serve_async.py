"""An async server: every request names the patches it wants, and requests do not mix."""

import asyncio
from typing import Annotated

import httpx
import torch
from fastapi import FastAPI, HTTPException, Query

from vlm_edit import Clamp, Patch, zoo
from vlm_edit.ground.errors import UnknownName
from vlm_edit.patches import PatchSet, attached

host, processor = zoo.load_llava()
pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("language.0")
COLOURS = {
    "yellow": [342, 110, 49, 501],
    "blue": [334, 296, 282, 423],
    "green": [49, 501, 482, 193],
}
patches = PatchSet(
    host,
    {
        name: Patch("language.0", dictionary, Clamp(features, value=8.0), tokens="image")
        for name, features in COLOURS.items()
    },
)
app = FastAPI()


def generate(inputs):
    """What takes long: run in a thread, it carries the context of the request along."""
    ids = host.generate(**inputs, do_sample=False, max_new_tokens=8)
    return processor.decode(ids[0], skip_special_tokens=True).rpartition("?")[2].strip()


@app.get("/answer/{picture}")
async def answer(picture: int, patch: Annotated[list[str], Query()] = [], strength: float = 1.0):  # noqa: B006
    """Answer a question about a picture under the patches that are named."""
    text = "<image>\nwhat colour is the background?"
    inputs = processor(text=text, images=pairs.open(picture), return_tensors="pt")
    try:
        # By default of this context alone, which is the request's own: other requests, which run
        # while this one waits, see nothing of it.
        with patches.attach(patch, strength) as on:
            said = await asyncio.to_thread(generate, inputs)
    except UnknownName as error:
        raise HTTPException(404, str(error)) from error
    return {"answer": said, "edited": sum(each.report().edited_tokens for each in on)}


async def ask(client, request):
    """What a client does."""
    return (await client.get("/answer/1", params=request)).json()


async def main():
    """Ask one after the other, then all at once."""
    requests = [{}, *({"patch": name} for name in COLOURS), {"patch": "green", "strength": 2.0}]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        alone = [await ask(client, request) for request in requests]
        together = await asyncio.gather(*(ask(client, request) for request in 5 * requests))
        unknown = await ask(client, {"patch": "pink"})
    for request, found in zip(requests, alone, strict=True):
        print(f"{request}: {found['answer']}")
    print(f"{len(together)} requests at once, each as if it had come alone:", together == 5 * alone)
    print("unknown:", unknown["detail"])
    patches.close()
    print("left on the host:", attached(host))


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(main())
