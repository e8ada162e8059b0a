"""Checks of a page for who does not see it well: contrast, and the rules of axe-core."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONTRAST = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgb = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c;
        canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
        return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
    const behind = (n) => { for (; n; n = n.parentElement) {
        const c = rgb(getComputedStyle(n).backgroundColor); if (c[3] === 255) return c; }
        return [255, 255, 255]; };
    const low = [];
    for (const n of document.querySelectorAll('body *')) {
        const own = [...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
        if (!own || n.closest('svg, script, [aria-disabled=true], .hidden') || !n.offsetParent)
            continue;
        const [a, b] = [light(rgb(getComputedStyle(n).color)), light(behind(n))];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < 4.5) low.push([n.tagName, n.className, n.textContent.slice(0, 30), ratio]);
    }
    return low;
}"""

_SPEC = find_spec("axe_core_python")
# The package holds axe-core's own script.
ACCESSIBLE = None if _SPEC is None else Path(str(_SPEC.origin)).with_name("axe.min.js")


def serious(page: Any) -> list[str]:
    """What axe-core finds serious or critical; nothing where it is not installed."""
    if ACCESSIBLE is None:
        return []
    page.evaluate(f"void (() => {{ {ACCESSIBLE.read_text('utf-8')} }})()")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:160]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:4]
    ]
