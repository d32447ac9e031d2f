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
    unproven = method.method_name in ("gas", "multisfl", "split_learning", "fedsgd", "centralized")
    require(not unproven, "model", type(method).__name__, "one process, in this version")
    mode = "gathered" if placement.mode == "auto" else placement.mode
    in_parts = method.whole_on_client
    require(mode != "sharded", "placement.mode", mode, "auto, gathered or roles, in this version")
    if mode == "roles":
        return RolesLink(post, in_parts)
    return GatheredLink(post, range(post.size), in_parts)
