"""What doctor says of hosts that work, and of such that are wrong in one place each."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from vlm_edit import Adapter, Host, VlmEditError, zoo
from vlm_edit.cli import main
from vlm_edit.host import find_adapter
from vlm_edit.tasks.doctor import examine


def found(host, image=None):
    return {finding.what: finding for finding in examine(host, image)}


@pytest.fixture(scope="module")
def llava():
    return zoo.load_llava()


def image_tokens(host):
    return (
        host.inputs([Image.new("RGB", (64, 64))], ["x"])
        .values["input_ids"]
        .eq(host.root.config.image_token_id)
    )


def test_on_a_host_that_works_everything_holds(llava):
    host = Host.of(*llava)
    findings = found(host)
    assert not [f for f in findings.values() if f.holds is False]
    assert {*host.sites} <= {*findings}
    count = int(image_tokens(host).sum())
    assert findings["image tokens"].told.startswith(f"{count} of ")
    assert "get_placeholder_mask" in findings["image tokens"].told
    assert findings["another image"].told == f"moves {count} tokens, image tokens all"
    assert findings["the host after all edits"].holds
    assert torch.__version__ in findings["versions"].told


def test_ids_that_are_not_the_hosts_own_fail(llava):
    model, processor = llava
    host = Host.of(model, processor)
    ids = host.inputs([Image.new("RGB", (64, 64))], ["What is this?"]).values["input_ids"]
    wrong = replace(find_adapter(model), image_token=int(ids[0, -1]))
    tokens = found(Host.of(model, processor, adapter=wrong))["image tokens"]
    assert tokens.holds is False
    assert "the host's own get_placeholder_mask has" in tokens.told


class Blind(nn.Module):
    """Puts features where its own ids are 7, and does not say so."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 4)
        self.eye = nn.Linear(3, 4)
        self.block, self.unread, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, input_ids, pixel_values):
        self.unread(self.embed.weight)
        seen = self.eye(pixel_values.mean((-1, -2)))
        place = (input_ids == 7).unsqueeze(-1)
        return self.head(self.block(torch.where(place, seen.unsqueeze(1), self.embed(input_ids))))


def ask(_processor, images, _texts):
    pixels = torch.stack([torch.tensor(image.resize((2, 2)).getdata()).float() for image in images])
    ids = torch.tensor([[1, 7, 7, 2, 3]] * len(images))
    return {"input_ids": ids, "pixel_values": pixels.view(-1, 2, 2, 3).permute(0, 3, 1, 2) / 255}


def blind(image_token=7, **sites):
    torch.manual_seed(0)
    places = {"projector": ("eye", "image", 4), "language": ("block", "mixed", 4)} | sites
    adapter = Adapter.of(places, image_token=image_token)
    return Host.of(Blind().eval(), adapter=adapter, prompt=ask)


def test_a_declaration_that_is_right_holds():
    findings = found(blind())
    assert findings["image tokens"].told == "2 of 5, told by ids of placeholders"
    assert findings["another image"].told == "moves 2 tokens, image tokens all"
    assert all(f.holds is not False for f in findings.values())


@pytest.mark.parametrize(
    ("host", "what", "told"),
    [
        (blind(image_token=2), "another image", "moves 2 tokens that are called text"),
        (blind(unread=("unread", "text", 4)), "unread", "changes nothing that the host says"),
        (blind(wide=("block", "mixed", 3)), "wide", "the edit fails: "),
        (blind(image_token=None), "image tokens", "nobody tells"),
    ],
)
def test_what_is_declared_wrong_is_named(host, what, told):
    findings = found(host)
    assert findings[what].holds is False
    assert findings[what].told.startswith(told)
    assert findings["the host after all edits"].holds


def test_a_host_that_is_not_ready_is_refused(llava):
    model, processor = llava
    with pytest.raises(VlmEditError, match="processor"):
        examine(Host.of(model))
    with pytest.raises(VlmEditError, match="train mode"):
        examine(Host.of(nn.Module.train(zoo.load_llava()[0]), processor))


def test_the_command_tells_it_and_says_by_its_exit_code_whether_all_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    assert main(["doctor", "zoo:emoji-clip", "--image", str(picture)]) == 0
    assert "Nothing fails." in capsys.readouterr().out
    assert main(["doctor", "zoo:emoji-clip", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tables"][0]["rows"][0][0] == "host"
    (tmp_path / "mine.py").write_text(
        "from vlm_edit import Adapter\n"
        "adapter = Adapter.of({'post': ('vision_model.post_layernorm', 'image', 7)})\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "zoo:emoji-clip", "--adapter", "mine:adapter"]) == 1
    said = capsys.readouterr().out
    assert "FAILS" in said and "1 of" in said
    assert main(["doctor", "zoo:emoji-clip", "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err
