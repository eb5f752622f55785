"""FLOPs of torch modules, counted without computing anything, against counts by hand."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from benches.gpu.torch_models import flops  # noqa: E402

pytestmark = pytest.mark.torch

ROWS = 2 * 5


class First(nn.Module):  # type: ignore[misc]
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        found = self.module(*given)
        return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(
    ("module", "products", "axes"),
    [
        (nn.Linear(8, 4), ROWS * 8 * 4, 1),
        (nn.Conv1d(5, 6, 3, padding=1), 2 * 6 * 8 * 5 * 3, 1),
        (nn.LSTM(8, 4, batch_first=True), ROWS * 4 * 4 * (8 + 4), 1),
        (nn.GRU(8, 4, batch_first=True), ROWS * 3 * 4 * (8 + 4), 1),
        (nn.MultiheadAttention(8, 2, batch_first=True), ROWS * (4 * 8 * 8 + 2 * 5 * 8), 3),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0),
            ROWS * (4 * 8 * 8 + 2 * 5 * 8 + 2 * 8 * 16),
            1,
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_products_are_counted_whatever_makes_them(module: nn.Module, products: int, axes: int) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    given = {f"x{number}": torch.randn(2, 5, 8) for number in range(axes)}
    assert flops(First(module).eval(), given) == 2 * products
    assert torch.backends.mha.get_fastpath_enabled() == fast
