"""The page on which one turns features and watches what changes; gradio serves it.

A ``Desk`` is a host with a dictionary at a site, and what is known of its features. ``serve`` puts
its page on a port of this machine. What it does stands in ``docs/app.md``.
"""

from vlm_edit.app.desk import Desk
from vlm_edit.app.serving import Server, serve
from vlm_edit.app.serving import expect_gradio as expect_gradio

__all__ = ["Desk", "Server", "serve"]
