"""A tiny random host of any vision-language type that transformers knows, and inputs for it.

host = build("qwen3_vl")
host.model(**host.inputs([[5, "I", 6, 7], [8, "I"]]))
"""

from any_hosts.hosts import SECOND, TYPES, AnyHost, NotBuilt, build

__all__ = ["SECOND", "TYPES", "AnyHost", "NotBuilt", "build"]
