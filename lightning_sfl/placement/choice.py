"""Which mode a run gets: the one that was asked for, or the first that is exact for the method and its network."""

from __future__ import annotations

from typing import Any

from lightning_sfl.core.errors import require
from lightning_sfl.core.link import Link
from lightning_sfl.placement.links import GatheredLink, RolesLink
from lightning_sfl.placement.post import Post
from lightning_sfl.placement.settings import Placement


def link_for(placement: Placement, method: Any, post: Post) -> Link:
    """The link between the processes of this run."""
    unproven = method.method_name in ("centralized",)
    require(not unproven, "model", type(method).__name__, "one process, in this version")
    mode = "gathered" if placement.mode == "auto" else placement.mode
    require(mode != "sharded", "placement.mode", mode, "auto, gathered or roles, in this version")
    homes = range(1, post.size) if mode == "roles" else range(post.size)
    link = RolesLink if mode == "roles" else GatheredLink
    return link(post, homes[:1] if method.handed_on else homes, method.whole_on_client)
