"""States: what is written is read back bit for bit, whole or not at all."""

import pytest
import torch

from genflow.errors import UserError
from genflow.gradients.states import load_state, save_state


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = {
        "numbers": [0.1, 1 / 3, -1e-300, float("inf"), 7],
        3: {"text": "ü", "flag": True, "none": None, "empty": {}},
        "tensors": [torch.randn(3, 2, dtype=torch.float64), torch.arange(4)],
        "scalar": torch.tensor(2.5),
        "half": torch.randn(5).to(torch.bfloat16),
    }
    save_state(tmp_path / "s", state)
    back = load_state(tmp_path / "s")
    assert back.keys() == state.keys() and back[3] == state[3]
    assert back["numbers"] == state["numbers"]
    pairs = [*zip(back["tensors"], state["tensors"]), (back["half"], state["half"])]
    for ours, theirs in [*pairs, (back["scalar"], state["scalar"])]:
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_two_names_of_one_tensor_are_two_tensors(tmp_path):
    x = torch.zeros(2)
    save_state(tmp_path / "s", {"a": x, "b": x, "c": x[1:]})
    back = load_state(tmp_path / "s")
    back["a"].add_(1)
    assert torch.equal(back["b"], x) and torch.equal(back["c"], x[1:])


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.LBFGS])
def test_optimisers_go_on_bit_for_bit(tmp_path, optimizer):
    def run(steps, x, opt):
        def closure():
            opt.zero_grad()
            loss = (x**4 + (x[0] * x[1] - 1) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(steps):
            opt.step(closure)

    def new():
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        return x, optimizer([x], lr=0.1)

    whole, opt = new()
    run(7, whole, opt)
    part, opt = new()
    run(3, part, opt)
    save_state(tmp_path / "s", {"x": part, "opt": opt.state_dict()})
    part, opt = new()
    back = load_state(tmp_path / "s")
    part.data.copy_(back["x"])
    opt.load_state_dict(back["opt"])
    run(4, part, opt)
    assert torch.equal(part, whole)


def test_what_is_no_state_is_refused(tmp_path):
    (tmp_path / "s").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read .*begin again"):
        load_state(tmp_path / "s")
    with pytest.raises(UserError, match="cannot be read"):
        load_state(tmp_path / "missing")
