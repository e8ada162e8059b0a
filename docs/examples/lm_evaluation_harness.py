"""lm-evaluation-harness with a patch attached: its HFLM scores the host as ever, edited.

Needs an environment of its own: `pip install torch 'lm-eval[hf]' vlm-edit`. Nothing is downloaded:
the task is a file written here, the hosts are bundled.
"""

import json
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import LlamaForCausalLM

from vlm_edit import Adapter, Clamp, Host, Patch, zoo

pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("language.0")
llava, processor = zoo.load_llava()
COLOURS = ["blue", "green", "grey", "red", "white", "yellow"]
YELLOW = Clamp([342, 110, 49, 501], value=8.0)
FOLDER = tempfile.TemporaryDirectory()
QUESTION = "what colour is the background?"


def task():
    """A task of multiple choice, as the harness takes it: which colour is the sun?"""
    asked = ["the sun", "a lemon", "a banana", "butter"]
    docs = [{"text": f"{QUESTION} {each}", "answer": COLOURS.index("yellow")} for each in asked]
    file = Path(FOLDER.name, "docs.jsonl")
    file.write_text("\n".join(map(json.dumps, docs)), "utf-8")
    return {
        "task": "yellow_things",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": FOLDER.name},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": COLOURS,
        "doc_to_target": "answer",
    }


def evaluate(model):
    """The harness's accuracy, and the log-likelihood of each choice of each document."""
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task()],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    samples = found["samples"]["yellow_things"]
    scores = [score for sample in samples for ((score, _),) in sample["resps"]]
    return found["results"]["yellow_things"]["acc,none"], scores


def see(model):
    """What the harness's multimodal model answers to two images."""
    arguments = [
        (f"<image>\n{QUESTION}", {"until": ["\n"], "max_gen_toks": 8}, {"visual": [pairs.open(i)]})
        for i in (1, 11)
    ]
    return [text.strip() for text in model.generate_until([request(a) for a in arguments])]


def request(arguments):
    """One request of the harness."""
    return Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0)


# A plain Llama, which no adapter is shipped for: a line says where its layers are.
llama = LlamaForCausalLM(llava.config.get_text_config()).eval()
llama.model.load_state_dict(llava.model.language_model.state_dict())
llama.lm_head.load_state_dict(llava.lm_head.state_dict())
own = Adapter.of({"language.{i}": ("model.layers.{i}", "text", "hidden_size")})

# check_host=False: the dictionary names the LLaVA as the host that it was trained on.
patch = Patch("language.0", dictionary, YELLOW, tokens="all")
for name, host, adapter in (("LLaVA", llava, None), ("Llama", llama, own)):
    model = HFLM(
        pretrained=host,
        tokenizer=processor.tokenizer,
        backend="causal",
        batch_size=4,
        device="cpu",
    )
    accuracy, before = evaluate(model)
    with patch.attach(Host.of(host, adapter=adapter), strength=0, check_host=False) as attached:
        print(f"{name}, strength 0, the same bits:", evaluate(model)[1] == before)
        attached.set_strength(1)
        edited, during = evaluate(model)
        print(attached.report())
    print(f"{name}, accuracy: {accuracy} and {edited}")
    print(f"{name}, scores that differ: {sum(a != b for a, b in zip(before, during, strict=True))}")
    print(f"{name}, removed, the same bits:", evaluate(model)[1] == before)

# Its model of images and text: the patch knows image tokens as ever.
model = HFMultimodalLM(pretrained=llava, processor=processor, batch_size=2, device="cpu")
before = see(model)
with Patch("language.0", dictionary, YELLOW, tokens="image").attach(llava) as attached:
    print("images:", before, see(model))
print(attached.report())
