"""How large the house is: its rooms, doors, names and lines, and how soon the command answers.

    python tests/benchmarks/house.py
    python tests/benchmarks/house.py --draw    # docs/house.svg too

What a decode step costs an edit is told by ``step_cost.py`` beside it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "house"))

from test_architecture import (  # noqa: E402
    ADAPTERS,
    CORE,
    back_doors,
    cycle,
    modules,
    room_arrows,
    rooms,
)

# The floors from the top, each with what a stranger looks for in a room.
FLOORS = [
    {"cli": "vlm-edit"},
    {"app": "a page to turn features on"},
    {"tasks": "bias, attacks, drawing, demo", "testing": "does your own hold?"},
    {"tuning": "how strongly"},
    {"selection": "which features", "report": "tables, pages", "zoo": "bundled hosts"},
    {"measuring": "pairs → scores", "patches": "attach, save, share"},
    {"measures": "MDS and its kin", "edits": "rules, the splice", "hooks": "calls, tokens"},
    {"dictionaries": "SAEs, their formats", "host": "sites, adapters"},
    {"ground": "codes, statistics, files, errors"},
]
WIDTH, HIGH, WIDE, BETWEEN = 860, 46, 216, 30


def picture() -> str:
    """The rooms as a house: each imports from floors below it alone, what it needs of them drawn.

    Raises:
        AssertionError: A room is missing, or an arrow does not point down.
    """
    place = {}
    for floor, on in enumerate(FLOORS):
        left = (WIDTH - len(on) * WIDE - (len(on) - 1) * 44) / 2
        for i, room in enumerate(on):
            place[room] = (left + i * (WIDE + 44), 10 + floor * (HIGH + BETWEEN))
    public = {room for room in rooms(CORE) if not room.startswith("_")}
    assert public == set(place), public ^ set(place)
    arrows = {
        (room, target) for _, room, target in room_arrows(CORE) if room in place and target in place
    }
    assert all(place[room][1] < place[target][1] for room, target in arrows), "an arrow points up"
    drawn = sorted(direct(arrows))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
        f'{len(FLOORS) * (HIGH + BETWEEN)}" font-family="system-ui, sans-serif" '
        'text-anchor="middle">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for room, target in drawn:
        (x, y), (u, v) = place[room], place[target]
        start, end = (x + WIDE / 2, y + HIGH), (u + WIDE / 2, v)
        lines.append(
            f'<path d="M{start[0]:g} {start[1]:g}C{start[0]:g} {start[1] + 22:g} {end[0]:g} '
            f'{end[1] - 22:g} {end[0]:g} {end[1]:g}" fill="none" stroke="#9ab" stroke-width="1.5"/>'
        )
    for room, (x, y) in place.items():
        words = next(on[room] for on in FLOORS if room in on)
        lines += [
            f'<rect x="{x:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="7" fill="#eef3f8" '
            'stroke="#567"/>',
            f'<text x="{x + WIDE / 2:g}" y="{y + 20:g}" font-size="15" font-weight="600" '
            f'fill="#123">{room}</text>',
            f'<text x="{x + WIDE / 2:g}" y="{y + 37:g}" font-size="12" fill="#456">{words}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def direct(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way says already."""

    def below(room: str) -> set[str]:
        return {end for start, end in arrows if start == room}

    def reached(room: str) -> set[str]:
        return below(room).union(*(reached(end) for end in below(room)))

    return {
        (room, end)
        for room, end in arrows
        if not any(end in reached(other) for other in below(room) - {end})
    }


def names() -> tuple[int, int]:
    """Names at the front, and in all ``__all__`` together."""
    front = everywhere = 0
    for path in modules(CORE):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                listed = [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
                everywhere += len(listed)
                front += len(listed) * (path == CORE / "__init__.py")
    return front, everywhere


def seconds(*words: str, repeats: int = 7) -> float:
    """The median of what a process takes."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        took.append(time.perf_counter() - start)
    return sorted(took)[repeats // 2]


def main() -> None:
    lines = sum(
        len(path.read_text("utf-8").splitlines())
        for folder in (CORE, ADAPTERS)
        for path in modules(folder)
    )
    front, everywhere = names()
    public = [room for room in rooms(CORE) if not room.startswith("_")]
    print(f"Python lines installed: {lines}")
    print(f"entries at the top of vlm_edit: {len(public)}")
    print(f"circles: {int(cycle(CORE) is not None)}; back doors: {len(back_doors(CORE))}")
    print(f"names at the front: {front}; in all __all__: {everywhere}")
    print(f"vlm-edit --version: {seconds('-m', 'vlm_edit', '--version'):.2f} s")


if __name__ == "__main__":
    if "--draw" in sys.argv:
        (ROOT / "docs" / "house.svg").write_text(picture(), "utf-8")
    main()
