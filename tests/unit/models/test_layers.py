import torch
from torch.testing import assert_close

from qianyan.models.layers import MLP, RMSNorm


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(4, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    hidden = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]])
    expected = torch.tensor([[1.0, -2.0, 3.0, -4.0], [1.0, 2.0, 3.0, 4.0]])
    assert_close(norm(hidden), expected)


def test_rms_norm_survives_values_whose_squares_overflow_half_precision() -> None:
    norm = RMSNorm(64, eps=1e-6).half()
    hidden = torch.full((2, 64), 3000.0, dtype=torch.float16)
    out = norm(hidden)
    assert out.dtype == torch.float16
    assert_close(out, torch.ones_like(out))


def test_rms_norm_keeps_the_dtype_of_what_it_is_given() -> None:
    norm = RMSNorm(8, eps=1e-6)
    assert norm(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_mlp_gates_the_up_projection() -> None:
    torch.manual_seed(0)
    mlp = MLP(6, 10, bias=True)
    hidden = torch.randn(3, 6)
    gate = hidden @ mlp.gate_proj.weight.T + mlp.gate_proj.bias
    up = hidden @ mlp.up_proj.weight.T + mlp.up_proj.bias
    expected = (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T + mlp.down_proj.bias
    assert_close(mlp(hidden), expected)


def test_mlp_without_bias_has_three_matrices_only() -> None:
    names = dict(MLP(6, 10, bias=False).named_parameters())
    assert set(names) == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
