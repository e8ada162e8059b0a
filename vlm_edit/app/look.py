"""How the page looks: fonts of the visitor's own machine, one accent, light and dark."""

from __future__ import annotations

from typing import Any

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
.gradio-container label, .gradio-container [data-testid="block-info"] { overflow-wrap: anywhere;
  min-width: 0; }
.ve-head h1 { font-size: 1.45rem; font-weight: 650; margin: 0; letter-spacing: -.01em; }
.ve-head p { margin: .25rem 0 0; color: var(--body-text-color-subdued); }
.ve-hint { margin: 0; color: var(--body-text-color-subdued); font-size: .9rem; }
.ve-told { margin: 0 0 .35rem; font-weight: 600; }
.ve-list { margin: 0; padding-left: 1.1rem; list-style: disc; overflow-wrap: anywhere; }
.ve-list li { margin: .1rem 0; font-size: .9rem; }
.ve-note { color: var(--ve-note); }
.ve-trouble { margin: 0; padding: .7rem .9rem; border-left: 4px solid var(--ve-note);
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.ve-gallery .grid-wrap { min-height: 0 !important; max-height: none !important; }
.ve-gallery .grid-container { height: auto !important;
  grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)) !important;
  grid-template-rows: none !important; grid-auto-rows: min-content !important; }
.ve-gallery .thumbnail-item { min-width: 0 !important; height: auto !important; }
.block.ve-slot:has(.prose:empty) { position: absolute; width: 0; height: 0; overflow: hidden;
  pointer-events: none; }
.ve-gallery .caption-label { display: none !important; }
.ve-answer textarea { font-size: 1.15rem !important; line-height: 1.5 !important;
  field-sizing: content; height: auto !important; min-height: 6.5rem; max-height: 24rem; }
.ve-sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr));
  gap: 0 1rem; }
.ve-sheets section { min-width: 0; overflow-wrap: anywhere; }
.ve-bars { width: 100%; border-collapse: collapse; margin: 0; }
.ve-bars, .ve-bars tr, .ve-bars th, .ve-bars td { border: 0 !important; }
.ve-bars tbody tr + tr { border-top: 1px solid var(--border-color-primary) !important; }
.ve-bars caption { text-align: left; padding-bottom: .5rem; }
.ve-bars th { text-align: left; font-weight: 500; padding: .35rem .8rem .35rem 0; width: 34%;
  overflow-wrap: anywhere; vertical-align: middle; }
.ve-bars td { padding: .35rem 0; }
.ve-row { display: flex; align-items: center; gap: .6rem; margin: .15rem 0; }
.ve-track { flex: 1; height: .7rem; background: var(--background-fill-secondary); }
.ve-bar { display: block; height: 100%; min-width: 1px; }
.ve-share { width: 3.6rem; text-align: right; font-variant-numeric: tabular-nums; }
.ve-key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .25rem 0 .6rem; }
.ve-before { background: var(--ve-plain); }
.ve-after { background: var(--ve-turned); }
.ve-unseen { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
:root { --ve-plain: #71717a; --ve-turned: #0f766e; --ve-note: #9a3412; }
.dark { --color-accent: #2dd4bf; --ve-plain: #a1a1aa; --ve-turned: #2dd4bf; --ve-note: #fdba74; }
"""


def theme() -> Any:
    """Return gradio's theme of the page, which asks no other machine for fonts."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="zinc",
        radius_size=gr.themes.sizes.radius_sm,
        font=list(SANS),
        font_mono=list(MONO),
    ).set(
        body_text_color_subdued="#62626b",
        body_text_color_subdued_dark="#b4b4bd",
        block_label_text_color="#52525b",
        block_title_text_color="#3f3f46",
        block_title_text_color_dark="#e4e4e7",
        block_label_text_color_dark="#d4d4d8",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#115e59",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        color_accent="#0f766e",
        checkbox_background_color_selected="#0f766e",
        checkbox_border_color_selected="#0f766e",
        checkbox_background_color_selected_dark="#0f766e",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
    )
