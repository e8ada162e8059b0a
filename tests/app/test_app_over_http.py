"""The page's server as others reach it: who may, how much, hostile files, visitors at once."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from desks import QUESTION, clip_desk, controls, llava_desk

from vlm_edit import Ablate, Patch, VlmEditError, load_patch, zoo
from vlm_edit.app import Server, serve
from vlm_edit.app.acts import LOADED
from vlm_edit.app.guard import Guard
from vlm_edit.app.saved import save_patch

gradio = pytest.importorskip("gradio", reason="needs gradio: pip install gradio")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install httpx")

from gradio_client import Client, handle_file  # noqa: E402

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def llava() -> Iterator[Server]:
    with serve(llava_desk()) as server:
        yield server


@pytest.fixture(scope="module")
def clip() -> Iterator[Server]:
    with serve(clip_desk()) as server:
        yield server


def visit(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture
def image(tmp_path: Path) -> Any:
    zoo.load_pairs().open(1).save(tmp_path / "one.png")
    return handle_file(str(tmp_path / "one.png"))


def given(values: list[Any]) -> list[Any]:
    """The values of the controls that a client sends: what was loaded stays on the server."""
    return [*values[:11], *values[12:]]


def ask(client: Client, image: Any, **changes: Any) -> list[Any]:
    sent = given(controls(**changes))
    return client.predict(image, QUESTION, "{}", 32, 0, *sent, api_name="/go")


def test_the_server_listens_to_this_machine_alone_and_tells_no_other(llava: Server) -> None:
    assert llava.url.startswith("http://127.0.0.1:") and llava.public is None
    port = int(llava.url.rsplit(":", 1)[1].strip("/"))
    with socket.socket() as other:  # an address of this machine that it does not listen at
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", port)) != 0
    config = httpx.get(f"{llava.url}config").json()
    assert config["analytics_enabled"] is False and not config.get("space_id")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{}", 200),
        ("localhost:{}", 200),
        ("[::1]:{}", 200),
        ("LOCALHOST:{}", 200),
        ("evil.example:{}", 403),
        ("localhost.evil.example:{}", 403),
        ("127.0.0.1", 403),
        ("127.0.0.1:1", 403),
        ("", 403),
    ],
)
def test_a_name_that_leads_here_from_elsewhere_is_refused(
    llava: Server, host: str, status: int
) -> None:
    port = llava.url.rsplit(":", 1)[1].strip("/")
    for place in ("", "config", "gradio_api/info"):
        told = httpx.get(f"{llava.url}{place}", headers={"host": host.format(port)})
        assert told.status_code == status
    if status == 403:
        assert told.text == (
            "this page is for this machine alone: open it by the address it printed"
        )


def test_a_page_of_another_site_may_not_send_anything(llava: Server) -> None:
    files = {"files": ("a.txt", b"x")}
    place = f"{llava.url}gradio_api/upload"
    refused = httpx.post(place, files=files, headers={"origin": "http://evil.example"})
    assert refused.status_code == 403 and refused.text.startswith("a page of another site may not")
    own = httpx.post(place, files=files, headers={"origin": llava.url.rstrip("/")})
    assert own.status_code == 200


def test_whoever_is_let_in_by_name_is_let_in_where_others_are_wanted() -> None:
    with serve(clip_desk(), host="0.0.0.0") as server:
        port = server.url.rsplit(":", 1)[1].strip("/")
        told = httpx.get(f"http://127.0.0.1:{port}/config", headers={"host": "lab.example"})
        assert told.status_code == 200


def test_no_file_of_the_machine_is_handed_out(llava: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("my own words")
    for path in ("/etc/passwd", str(tmp_path / "secret.txt"), "pyproject.toml", __file__):
        told = httpx.get(f"{llava.url}gradio_api/file={path}")
        assert told.status_code in (403, 404) and "my own words" not in told.text


def test_more_bytes_than_are_taken_are_refused(llava: Server) -> None:
    place = f"{llava.url}gradio_api/upload"
    told = httpx.post(place, files={"files": ("a.png", b"x" * (34 * 2**20))})
    assert (told.status_code, told.text) == (413, "a request may send at most 33 MiB")


def test_what_is_sent_without_saying_how_much_is_counted() -> None:
    read: list[dict[str, Any]] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while len(read) < 10 and (not read or read[-1].get("more_body")):
            read.append(await receive())

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 40, "more_body": True}

    async def send(_message: Any) -> None:
        raise AssertionError("it answers by itself")

    scope = {"type": "http", "headers": [(b"host", b"localhost:80")], "server": ("", 80)}
    asyncio.run(Guard(app, most=100)(scope, receive, send))
    assert [one["type"] for one in read] == ["http.request"] * 2 + ["http.disconnect"]


def test_an_answer_is_that_of_the_desk_and_says_what_was_edited(llava: Server, image: Any) -> None:
    before, after, report, trouble, code = ask(visit(llava), image)
    assert (before, after, trouble) == ("blue", "yellow", "")
    assert "37 tokens edited" in report
    assert "Clamp([342, 110, 49, 501], value=8.0)" in code and 'tokens="image"' in code


def test_two_visitors_with_different_edits_get_what_each_gets_alone(
    llava: Server, image: Any
) -> None:
    clients = [visit(llava) for _ in range(3)]
    turned = ["342, 110, 49, 501", "49, 501, 482, 193", "31, 407"]
    alone = [ask(clients[0], image, numbers=one)[:3] for one in turned]
    assert len({after for _, after, _ in alone}) == 3
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            jobs = [
                pool.submit(ask, client, image, numbers=one)
                for client, one in zip(clients, turned, strict=True)
            ]
            assert [job.result()[:3] for job in jobs] == alone


def test_labels_are_compared_and_what_is_typed_is_escaped(clip: Server, image: Any) -> None:
    sent = given(controls("3, 17", rule="ablate", tokens="all"))
    bars, report, trouble, _ = visit(clip).predict(
        image, f"dog face, {HOSTILE}", "a picture of {}", 32, 0, *sent, api_name="/go"
    )
    assert trouble == "" and "3 tokens edited" in report
    assert "<img" not in bars and "&lt;img" in bars and bars.count("ve-track") == 4


def test_as_many_random_features_are_named_as_such(llava: Server, image: Any) -> None:
    sent = given(controls())
    client = visit(llava)
    first = client.predict(image, QUESTION, "{}", 32, 0, *sent, api_name="/random")
    again = client.predict(image, QUESTION, "{}", 32, 0, *sent, api_name="/random")
    assert "4 random features, each about as active as one of those chosen" in first[1]
    assert first[0]["visible"] is True and first[1] != again[1]  # another draw at each press


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"numbers": ""}, "no feature is chosen: type some, such as 3, 17"),
        ({"numbers": "9999"}, "9999"),
        ({"numbers": HOSTILE}, "&lt;img"),
        ({"source": LOADED}, "no patch was loaded"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    llava: Server, image: Any, changes: dict[str, Any], told: str
) -> None:
    before, after, _, trouble, _ = ask(visit(llava), image, **changes)
    assert (before, after) == ("", "") and told in trouble
    assert "Traceback" not in trouble and "<img" not in trouble and "role='alert'" in trouble


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_picture_is_said_to_be_none(
    llava: Server, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(data)
    *_, trouble, _ = ask(visit(llava), handle_file(str(tmp_path / "bad.png")))
    assert "the picture could not be read (bad.png" in trouble and "vlm-edit-app" not in trouble
    *_, trouble, _ = ask(visit(llava), None)
    assert "no picture: choose an example, or drop one of your own" in trouble


def call(server: Server, name: str, data: list[Any], session: str) -> list[Any]:
    """Call a private event as the page's own script does."""
    config = httpx.get(f"{server.url}config").json()
    numbers = [d["id"] for d in config["dependencies"] if d["api_name"] == name]
    sent = {"data": data, "fn_index": numbers[0], "session_hash": session}
    httpx.post(f"{server.url}gradio_api/queue/join", json=sent).raise_for_status()
    place = f"{server.url}gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", place, timeout=60) as events:
        for event in events.iter_lines():
            told = json.loads(event.removeprefix("data:")) if event.startswith("data:") else {}
            if told.get("msg") == "process_completed":
                assert told["success"], told
                return told["output"]["data"]
    raise AssertionError("no answer")


def upload(server: Server, path: Path) -> dict[str, Any]:
    files = {"files": (path.name, path.read_bytes())}
    (there,) = httpx.post(f"{server.url}gradio_api/upload", files=files).json()
    return {"path": there, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def test_a_hostile_patch_is_refused_in_a_sentence(clip: Server, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    _, told, _ = call(clip, "load", [upload(clip, path)], "bad")
    assert "hostile.safetensors was not taken" in told and "vlm-edit-app" not in told


def test_a_patch_is_loaded_by_one_visitor_and_by_no_other(clip: Server, tmp_path: Path) -> None:
    desk = clip_desk()
    path = save_patch(desk, Patch("joint", desk.dictionary, Ablate(range(200))), tmp_path)
    _, told, source = call(clip, "load", [upload(clip, path)], "ann")
    assert "ablate 200 features" in told and source == LOADED
    zoo.load_pairs().open(1).save(tmp_path / "one.png")
    sent = controls(source=LOADED)
    asked = [upload(clip, tmp_path / "one.png"), "dog face, car", "a {}", 32, 0, *sent]
    assert call(clip, "go", asked, "ann")[2] == ""
    assert "no patch was loaded" in call(clip, "go", asked, "bob")[2]


def test_what_was_turned_is_taken_home_as_a_file(clip: Server, tmp_path: Path) -> None:
    file, trouble = call(clip, "save", controls("3, 17", rule="ablate"), "ann")
    assert trouble == ""
    data = httpx.get(file["value"]["url"] or f"{clip.url}gradio_api/file={file['value']['path']}")
    (tmp_path / "home.safetensors").write_bytes(data.content)
    rules = load_patch(tmp_path / "home.safetensors").bindings[0].splice.rules
    assert rules == (Ablate([3, 17]),)


def test_a_port_that_is_taken_is_named(clip: Server) -> None:
    port = int(clip.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(VlmEditError, match=f"port {port} cannot be served"):
        serve(clip_desk(), port=port)
