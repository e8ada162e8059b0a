"""Two examples of every verb, which end its help; tests hold that they are taken."""

from vlm_edit.cli import arguments as of
from vlm_edit.cli.asked import Ask
from vlm_edit.cli.named import Name
from vlm_edit.cli.served import App

EXAMPLES: dict[type, tuple[str, str]] = {
    of.Demo: ("demo --out demo", "demo --llava"),
    of.Doctor: (
        "doctor zoo:emoji-llava",
        "doctor Qwen/Qwen3.5-9B --image cat.jpg --dtype bfloat16",
    ),
    of.Sites: ("sites zoo:emoji-clip", "sites llava-hf/llava-1.5-7b-hf --dtype bfloat16"),
    of.Collect: (
        "collect zoo:emoji-clip zoo:pairs --out activations",
        "collect MODEL pairs.csv --site vision.9 --most 16 --out activations",
    ),
    of.Train: (
        "train zoo:emoji-clip zoo:pairs --features 256 --steps 300 --out sae",
        "train --activations activations --kind topk --k 32 --out sae",
    ),
    of.Check: (
        "check zoo:emoji-clip zoo:pairs --dictionary zoo:joint",
        "check MODEL pairs.csv --site language.16 --dictionary sae",
    ),
    of.Measure: (
        "measure zoo:emoji-clip zoo:pairs --dictionary zoo:joint --out run",
        "measure MODEL pairs.csv --text-column words --dictionary sae --json",
    ),
    of.Report: (
        "report run",
        "report layer-2 layer-9 layer-16 --page layers.html",
    ),
    of.Maps: (
        "maps zoo:emoji-clip zoo:pairs --dictionary neurons --site vision.2",
        "maps MODEL PAIRS --dictionary SAE --site vision.22 --shown 20",
    ),
    of.Census: (
        "census zoo:emoji-clip zoo:pairs --dictionary zoo:joint",
        "census MODEL pairs.csv --dictionary sae --skip joint --run run",
    ),
    Name: (
        "name run",
        "name run --dictionary sae --vocabulary words.txt --features 3,17",
    ),
    of.Edit: (
        "edit zoo:emoji-clip zoo:pairs --dictionary zoo:joint --class vision",
        "edit MODEL PAIRS --site language.2 --dictionary SAE --features 3",
    ),
    Ask: (
        "ask zoo:emoji-llava cat.png 'what is it?'",
        "ask MODEL cat.png 'what is it?' --patch p.safetensors --strength 2",
    ),
    App: (
        "app zoo:emoji-llava --dictionary zoo:language.0",
        "app MODEL --dictionary sae --run run --port 8000",
    ),
    of.Bias: (
        "bias zoo:emoji-clip zoo:pairs --values man,woman --label concept",
        "bias MODEL fairface --attribute gender --dictionary sae --out bias",
    ),
    of.Attack: (
        "attack zoo:emoji-clip zoo:pairs --label label --eps 1 4",
        "attack MODEL photos --question 'what is it?' --target 'a cat'",
    ),
    of.Draw: (
        "draw 'a picture of red apple' --reference 'a picture of dog face'",
        "draw face.png --rule keep --class vision --out kept.png",
    ),
    of.Info: ("patch info p.safetensors", "patch info owner/name --card"),
    of.Apply: (
        "patch apply MODEL p.safetensors",
        "patch apply MODEL p.safetensors --bake edited-model",
    ),
    of.Merge: (
        "patch merge a.safetensors b.safetensors --out both.safetensors",
        "patch merge owner/first owner/second --out both.safetensors",
    ),
    of.Diff: ("patch diff a.safetensors b.safetensors", "patch diff a.safetensors owner/name"),
}
