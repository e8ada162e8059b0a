"""Two examples of each verb, for the end of its help."""

from vlm_edit.cli import arguments as of
from vlm_edit.cli.asked import Ask

# A paragraph behind a backspace keeps its lines, as click has it.
_AS_IT_STANDS = "\b\n"


def _examples(*lines: str) -> str:
    return _AS_IT_STANDS + "\n".join(["Examples:", *(f"  vlm-edit {line}" for line in lines)])


EXAMPLES: dict[type, str] = {
    of.Edit: _examples(
        "edit zoo:emoji-clip zoo:pairs --dictionary zoo:joint --class vision",
        "edit MODEL PAIRS --site language.2 --dictionary SAE --features 3 \\\n"
        "      --ask 'what is it?' --save p.safetensors",
    ),
    Ask: _examples(
        "ask zoo:emoji-llava cat.png 'what is it?'",
        "ask MODEL cat.png 'what is it?' --patch p.safetensors --strength 2",
    ),
    of.Info: _examples("patch info p.safetensors", "patch info owner/name --card"),
    of.Apply: _examples(
        "patch apply MODEL p.safetensors",
        "patch apply MODEL p.safetensors --bake edited-model",
    ),
    of.Merge: _examples(
        "patch merge a.safetensors b.safetensors --out both.safetensors",
        "patch merge owner/a owner/b --out both.safetensors",
    ),
    of.Diff: _examples(
        "patch diff a.safetensors b.safetensors",
        "patch diff a.safetensors owner/name",
    ),
}
