"""Checkpoints of PyTorch: read as data, never run; converted into the encoder."""

import contextlib
import os
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calm_jax.errors import WeightsError
from calm_jax.models import population_encoder as pe
from calm_jax.models import torch_names, torch_weights
from calm_jax.training.state import named
from tests.models.torch_files import Tensor, save

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = pe.EncoderConfig(
    latent_step=0.5, latents_per_step=2, width=8, depth=2, head_width=8, self_heads=3
)


def torch_state(seed=0):
    """A state dict of torch_brain's names and layout for CONFIG; 4 units, 2 sessions."""
    rng = np.random.default_rng(seed)
    w, h = 8, 8
    shapes = {
        "input_value_map.weight": (w // 2, 1), "input_value_map.bias": (w // 2,),
        "unit_emb.weight": (5, w // 2), "session_emb.weight": (3, w),
        "token_type_emb.weight": (4, w), "task_emb.weight": (4, w),
        "latent_emb.weight": (2, w), "rotary_emb.omega": (h // 2,),
        "readout.projections.orientation.weight": (8, w),
        "readout.projections.orientation.bias": (8,),
    }  # fmt: skip
    attention = lambda p, heads, cross: {
        f"{p}.norm.weight": (w,), f"{p}.norm.bias": (w,),
        f"{p}.to_out.weight": (w, heads * h), f"{p}.to_out.bias": (w,),
    } | ({
        f"{p}.norm_context.weight": (w,), f"{p}.norm_context.bias": (w,),
        f"{p}.to_q.weight": (heads * h, w), f"{p}.to_kv.weight": (2 * heads * h, w),
    } if cross else {f"{p}.to_qkv.weight": (3 * heads * h, w)})  # fmt: skip
    forward = lambda p: {
        f"{p}.0.weight": (w,), f"{p}.0.bias": (w,),
        f"{p}.1.net.0.weight": (8 * w, w), f"{p}.1.net.0.bias": (8 * w,),
        f"{p}.1.net.3.weight": (w, 4 * w), f"{p}.1.net.3.bias": (w,),
    }  # fmt: skip
    for part in ("enc", "dec"):
        shapes |= attention(f"{part}_atn", 2, True) | forward(f"{part}_ffn")
    for i in range(2):
        shapes |= attention(f"proc_layers.{i}.0", 3, False) | forward(f"proc_layers.{i}.1")
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def with_vocabulary(state):
    out = OrderedDict((k, Tensor(v)) for k, v in state.items())
    out["unit_emb.vocab"] = OrderedDict((x, i) for i, x in enumerate(["NA", "a", "b", "c", "d"]))
    out["session_emb.vocab"] = OrderedDict(NA=0, s1=1, s2=2)
    out._metadata = OrderedDict([("", {"version": 1})])
    return out


def test_a_state_dict_is_read_and_converted(tmp_path):
    state = torch_state()
    path = save(tmp_path / "weights.pt", with_vocabulary(state))
    found = torch_weights.state_dict(path)
    assert found.arrays.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found.arrays[name], value)
    assert found.vocabularies["unit_emb"] == ("NA", "a", "b", "c", "d")
    model = torch_names.to_encoder(found.arrays, {"orientation": 2}, latent_step=0.5)
    assert (model.config.width, model.config.depth, model.config.self_heads) == (8, 2, 3)
    params = named(nnx.to_pure_dict(nnx.split(model)[1]))
    fresh = pe.init(
        model.config, jax.random.key(0), units=4, sessions=2, heads={"orientation": (2, 8)}
    )
    assert params.keys() == named(nnx.to_pure_dict(nnx.split(fresh)[1])).keys()
    kernel = params["blocks/1/forward/up/kernel"]
    np.testing.assert_array_equal(kernel, state["proc_layers.1.1.1.net.0.weight"].T)
    np.testing.assert_array_equal(params["units/table"], state["unit_emb.weight"])
    assert model.omega == tuple(state["rotary_emb.omega"][:2].astype(float))
    z = pe.process(model, jnp.ones((1, 4, 8)))
    assert z.shape == (1, 4, 8) and np.isfinite(z).all()


def test_wrapped_checkpoints(tmp_path):
    state = {f"model.{k}": Tensor(v) for k, v in torch_state().items()}
    path = save(tmp_path / "last.ckpt", {"state_dict": state, "epoch": 3, "lr": [0.1, None]})
    assert torch_weights.load(path)["epoch"] == 3
    assert torch_weights.state_dict(path).arrays.keys() == torch_state().keys()


def test_views_strides_and_types(tmp_path):
    base = np.arange(12, dtype=np.float32)
    content = {
        "turned": Tensor(base, (4, 3), (1, 4)),
        "part": Tensor(base, (2, 2), (4, 1), offset=5),
        "scalar": Tensor(np.float64(2.5)),
        "long": Tensor(np.arange(3)),
        "half": Tensor(np.ones(2, np.float16)),
        "bool": Tensor(np.array([True, False])),
        "none": Tensor(np.zeros((0, 3), np.float32)),
    }
    found = torch_weights.load(save(tmp_path / "x.pt", content))
    np.testing.assert_array_equal(found["turned"], base.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [[5, 6], [9, 10]])
    assert found["scalar"] == 2.5 and found["scalar"].shape == ()
    assert found["long"].tolist() == [0, 1, 2] and found["half"].dtype == np.float16
    assert found["bool"].tolist() == [True, False] and found["none"].shape == (0, 3)
    with pytest.raises(ValueError, match="read-only"):
        found["turned"][0, 0] = 1


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    path = save(tmp_path / "evil.pt", {"state_dict": {}, "x": Malicious(mark)})
    with pytest.raises(WeightsError, match=r"(posix|nt)\.system") as e:
        torch_weights.load(path)
    assert not mark.exists() and str(path) in str(e.value)


one = np.ones(4, np.float32)


@pytest.mark.parametrize(
    "content",
    [
        {"a": Tensor(one, (5,), (1,))},
        {"a": Tensor(one, (1 << 40,), (0,))},
        {"a": Tensor(one, (2,), (4,))},
        {"a": Tensor(one, (2,), (1,), offset=3)},
        {"a": Tensor(one, (2,), (-1,), offset=1)},
        {"a": Tensor(one, (2, 2), (1,))},
        {"a": Tensor(one, key="../../data.pkl")},
        {"a": Tensor(one, key="9")},
        {"a": Tensor(one, count=1 << 50)},
    ],
)
def test_tensors_beyond_their_bytes(tmp_path, content):
    with pytest.raises(WeightsError, match=r"x\.pt"):
        torch_weights.load(save(tmp_path / "x.pt", content))


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        torch_weights.load(tmp_path / "absent.pt")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(WeightsError, match="zip format"):
        torch_weights.load(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("hello", "world")
    with pytest.raises(WeightsError, match="not a PyTorch checkpoint"):
        torch_weights.load(tmp_path / "other.pt")
    packed = save(tmp_path / "z.pt", {"a": Tensor(one)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        torch_weights.load(packed)
    with pytest.raises(WeightsError, match="no state dict"):
        torch_weights.state_dict(save(tmp_path / "n.pt", {"epoch": 1}))


def test_cut_files(tmp_path):
    whole = save(tmp_path / "w.pt", with_vocabulary(torch_state())).read_bytes()
    rng = np.random.default_rng(0)
    for i in range(40):
        data = bytearray(whole)
        if i % 2:
            del data[rng.integers(0, len(data)) :]
        else:
            data[int(rng.integers(0, 3000))] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "d.pt").write_bytes(data)
        with contextlib.suppress(WeightsError):
            torch_weights.state_dict(tmp_path / "d.pt")


def test_states_that_do_not_fit():
    state = torch_state()
    convert = lambda s: torch_names.to_encoder(s, {"orientation": 2}, latent_step=0.5)
    with pytest.raises(WeightsError, match="another model"):
        convert(state | {"conv.weight": one})
    with pytest.raises(WeightsError, match="decoder/forward/down/bias.*nothing"):
        convert({k: v for k, v in state.items() if k != "dec_ffn.1.net.3.bias"})
    with pytest.raises(WeightsError, match="decoder/forward/down/bias.*shape"):
        convert(state | {"dec_ffn.1.net.3.bias": one})
    with pytest.raises(WeightsError, match="id of a task is not given"):
        torch_names.to_encoder(state, {}, latent_step=0.5)
    with pytest.raises(WeightsError, match="layers are missing"):
        convert({k: v for k, v in state.items() if not k.startswith("proc_layers.0")})
