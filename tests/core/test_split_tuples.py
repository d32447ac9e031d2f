"""The cut where more than one tensor crosses it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.core.errors import DataError
from lightning_sfl.core.split import split
from tests.core.awkward import train_alike, x_of


class Pair(nn.Module):
    """Returns two tensors in a nested structure, and one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.unread = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.one(x), {"unread": self.unread(x), "two": self.two(x)}


class Joined(nn.Module):
    """Two paths across the cut `pair`."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.traceable = traceable
        self.pair, self.head = Pair(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, rest = self.pair(x)
        if not self.traceable and one.sum() > 1e9:
            one = one * 2
        return self.head(torch.cat([one, rest["two"]], dim=1)) + 0 * rest["two"].sum()


class Unpacks(nn.Module):
    """Takes a tuple as its one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(torch.cat(pair, dim=1))


class Flat(nn.Module):
    """Returns a flat tuple of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


@pytest.mark.parametrize(
    ("make", "cut_layer", "way"),
    [
        (lambda: nn.Sequential(Flat(), Unpacks()), "0", "slice"),
        (lambda: Joined(True), "pair", "fx"),
        (lambda: Joined(False), "pair", "hook"),
    ],
)
def test_a_tuple_is_carried_as_one_flat_tuple(make: Callable[[], nn.Module], cut_layer: str, way: str) -> None:
    model = make().double()
    cut = split(model, cut_layer, x_of())
    assert cut.certificate.way == way
    assert cut.certificate.smashed_shapes == ((3,), (2,))
    assert cut.certificate.bytes_per_sample == 5 * 8
    smashed = cut.client_half(x_of())
    assert isinstance(smashed, tuple)
    assert len(smashed) == 2
    # `unread` reaches no output: it has no gradient in the whole model either
    train_alike(model, cut, x_of(3))


class Reader(nn.Module):
    """torch's own LSTM, whose output is the nested tuple (sequence, (hidden, cell))."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(5, 3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(ids))
        return self.head(out)


def test_of_an_lstm_only_the_sequence_crosses() -> None:
    model = Reader().double()
    ids = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    cut = split(model, "lstm", ids)
    assert isinstance(cut.client_half(ids), Tensor)
    assert cut.certificate.smashed_shapes == ((6, 4),)
    train_alike(model, cut, ids[:2, :4])


def test_the_hook_server_says_when_sizes_do_not_fit() -> None:
    class Untraceable(Reader):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids if int(ids.max()) >= 0 else ids + 1)

    ids = torch.randint(5, (3, 6))
    cut = split(Untraceable(), "lstm", ids)
    assert cut.certificate.way == "hook"
    with pytest.raises(DataError, match=r"made for inputs of \(6,\)"):
        cut.server_half(cut.client_half(ids[:, :4]))
