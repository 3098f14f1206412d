"""The scan connectors against a slow reference that loops over directions, and their rules for fields."""

import pytest
import torch
import torch.nn.functional as F

import connectors
from ablate.core.errors import UserError
from ablate.ssm import ssd
from connectors.msc import cross_scan, cross_unscan
from connectors.scan_orders import permutation, scan_indices

NAMES = [name for name in connectors.names() if name.startswith("msc_")]
SMALL = {"d_state": 8, "headdim": 8, "chunk_size": 5}


def reference(connector, features, arrangement, scans, swiglu):
    """The equations at the head of connectors/msc.py, one direction and one tap of the convolution at a time."""
    weights = dict(connector.named_parameters())
    height, width = features.shape[1:3]
    u = features.flatten(1, 2)
    if arrangement == "released":
        u = F.gelu(F.linear(u, weights["project.0.weight"], weights["project.0.bias"]))
    for block in range(len(connector.blocks)):
        own = {key.removeprefix(f"blocks.{block}."): value for key, value in weights.items()}
        u = u + reference_mixer(own, u, arrangement, [permutation(name, height, width) for name in scans])
        if swiglu:
            normed = layer_norm(u, own["swiglu.0.weight"], own["swiglu.0.bias"])
            gate, value = F.linear(normed, own["swiglu.1.w12.weight"], own["swiglu.1.w12.bias"]).chunk(2, dim=-1)
            u = u + F.linear(F.silu(gate) * value, own["swiglu.1.w3.weight"], own["swiglu.1.w3.bias"])
    if arrangement == "released":
        u = layer_norm(u, weights["norm.weight"], weights["norm.bias"])
    u = F.gelu(F.linear(u, weights["mlp.0.weight"], weights["mlp.0.bias"]))
    u = F.gelu(F.linear(u, weights["mlp.2.weight"], weights["mlp.2.bias"]))
    return F.linear(u, weights["mlp.4.weight"], weights["mlp.4.bias"])


def reference_mixer(own, u, arrangement, orders):
    if arrangement == "paper":
        u = layer_norm(u, own["norm.weight"], own["norm.bias"])
    heads = own["mixer.scan.A_log"].shape[1]
    d_inner = own["mixer.out_proj.weight"].shape[1]
    d_state = SMALL["d_state"]
    z, xBC, dt = F.linear(u, own["mixer.in_proj.weight"]).split([d_inner, d_inner + 2 * d_state, heads], dim=-1)
    taps = own["mixer.scan.conv1d.weight"].view(len(orders), d_inner + 2 * d_state, -1)
    biases = own["mixer.scan.conv1d.bias"].view(len(orders), -1)
    merged = []
    for k, order in enumerate(orders):
        order = torch.from_numpy(order.copy())
        read = xBC[:, order]
        convolved = torch.zeros_like(read) + biases[k]
        for t in range(read.shape[1]):
            for back in range(min(t + 1, taps.shape[-1])):
                convolved[:, t] += taps[k, :, -1 - back] * read[:, t - back]
        x, B, C = F.silu(convolved).split([d_inner, d_state, d_state], dim=-1)
        scanned = ssd(
            x.unflatten(-1, (heads, -1)),
            F.softplus(dt[:, order] + own["mixer.scan.dt_bias"][k]),
            -own["mixer.scan.A_log"][k].exp(),
            B.unsqueeze(2),
            C.unsqueeze(2),
            own["mixer.scan.D"][k],
            backend="recurrent",
        ).flatten(2)
        y = torch.zeros_like(scanned)
        y[:, order] = scanned
        gated = y * F.silu(z)
        if arrangement == "released":
            gated = gated * (gated.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * own["mixer.norm.weight"]
        merged.append(gated)
    total = sum(merged) if arrangement == "paper" else sum(merged) / len(merged)
    return F.linear(total, own["mixer.out_proj.weight"])


def layer_norm(u, weight, bias):
    centred = u - u.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arrangement", ["paper", "released"])
@pytest.mark.parametrize("path", ["raster", "snake"])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_agrees_with_a_reference_that_loops_over_directions(name, arrangement, path, grid):
    torch.manual_seed(0)
    connector = connectors.create(name, 24, 16, arrangement=arrangement, path=path, **SMALL).double()
    with torch.no_grad():  # the directions start alike, which would hide a mix-up of their parameters
        for parameter in connector.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    features = torch.randn(2, *grid, 24, dtype=torch.float64, requires_grad=True)
    prefix = "" if path == "raster" else "snake_"
    scans = [f"{prefix}rows", f"{prefix}rows_reversed", f"{prefix}columns", f"{prefix}columns_reversed"]
    scans = scans if "csm" in name else scans[:2]
    actual = connector(features)
    expected = reference(connector, features, arrangement, scans, swiglu="basic" not in name)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)

    leaves = [features, *connector.parameters()]
    weights = torch.randn_like(actual)
    for mine, theirs in zip(
        torch.autograd.grad((actual * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_cross_scan_reads_and_cross_unscan_puts_back():
    indices = scan_indices(("rows_reversed", "columns", "snake_rows"), 2, 3, torch.device("cpu"))
    tokens = torch.arange(6.0).view(1, 6, 1)
    read = cross_scan(tokens, indices)[0, :, :, 0]
    assert read.T.tolist() == [[5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [0, 1, 2, 5, 4, 3]]
    home = cross_unscan(read[None, :, :, None], indices)[0, :, :, 0]
    assert home.T.tolist() == [[0, 1, 2, 3, 4, 5]] * 3


def test_gradients_of_cross_scan_and_unscan():
    indices = scan_indices(("rows", "columns_reversed"), 2, 3, torch.device("cpu"))
    tokens = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    scanned = torch.randn(2, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: cross_scan(t, indices), tokens)
    assert torch.autograd.gradcheck(lambda s: cross_unscan(s, indices), scanned)


@pytest.mark.parametrize("arrangement", ["paper", "released"])
def test_the_first_patch_sees_the_last_and_the_other_way_round(arrangement):
    """One forward scan would be causal: the whole point of the connector is that none of it is."""
    connector = connectors.create("msc_bsm", 24, 16, arrangement=arrangement, **SMALL).double()
    features = torch.randn(1, 3, 3, 24, dtype=torch.float64, requires_grad=True)
    tokens = connector(features)
    for token in (0, 8):
        (gradient,) = torch.autograd.grad(tokens[0, token].sum(), features, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).all()


def test_directions_start_from_one_draw_and_the_step_sizes_are_those_of_mamba2():
    torch.manual_seed(0)
    scan = connectors.create("msc_csm", 256, 16, headdim=2).blocks[0].mixer.scan
    for parameter in (scan.dt_bias, scan.A_log, scan.D):
        assert parameter.shape == (4, 256)
        assert torch.equal(parameter, parameter[:1].expand_as(parameter))
    dt = F.softplus(scan.dt_bias[0])
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 0.1 * 1.001
    assert 0.35 < (dt < 1e-2).float().mean() < 0.65  # log-uniform: half of them below the middle decade
    assert 1 <= scan.A_log.exp().min() <= scan.A_log.exp().max() <= 16
    assert not torch.equal(scan.conv1d.weight[:10], scan.conv1d.weight[-10:])


def test_no_weight_decay_for_what_mamba_exempts():
    connector = connectors.create("msc_bsm", 24, 16, **SMALL)
    exempt = {
        key.rpartition(".")[2] for key, p in connector.named_parameters() if getattr(p, "_no_weight_decay", False)
    }
    assert exempt == {"dt_bias", "A_log", "D"}


def test_place_of_the_two_arrangements():
    paper = connectors.create("msc_bsm", 24, 16, **SMALL)
    released = connectors.create("msc_bsm", 24, 16, arrangement="released", **SMALL)
    assert paper.blocks[0].mixer.in_proj.in_features == 24
    assert released.blocks[0].mixer.in_proj.in_features == 16
    assert [layer.out_features for layer in paper.mlp[::2]] == [96, 16, 16]
    assert [layer.out_features for layer in released.mlp[::2]] == [64, 16, 16]


def test_depth_and_drop_path():
    deep = connectors.create("msc_bsm", 24, 16, depth=4, drop_path=0.3, **SMALL)
    assert [round(getattr(block.drop_path, "drop_prob", 0), 6) for block in deep.blocks] == [0, 0, 0.1, 0.2]
    two = connectors.create("msc_bsm", 24, 16, **SMALL)
    assert all(isinstance(block.drop_path, torch.nn.Identity) for block in two.blocks)
    features = torch.randn(64, 2, 2, 24)
    assert not torch.equal(deep.train()(features), deep(features))
    assert torch.equal(deep.eval()(features), deep(features))


def test_scans_of_ones_own():
    features = torch.randn(2, 3, 4, 24, dtype=torch.float64)

    def tokens(**fields):
        torch.manual_seed(0)
        return connectors.create("msc_bsm", 24, 16, **SMALL, **fields).double()(features)

    assert torch.equal(tokens(), tokens(scans=["rows", "rows_reversed"]))
    assert torch.equal(tokens(path="snake"), tokens(scans=["snake_rows", "snake_rows_reversed"]))
    assert not torch.allclose(tokens(), tokens(scans=["columns", "rows_reversed"]))
    assert tokens(scans=["columns"]).shape == (2, 12, 16)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"headdim": 7}, ["headdim is 7", "inner width 48", "6"]),
        ({"headdim": 64}, ["headdim is 64", "inner width 48", "24, 48"]),
        ({"depth": 0}, ["depth is 0", "at least 1"]),
        ({"d_state": 0}, ["d_state is 0"]),
        ({"drop_path": 1.0}, ["drop_path is 1", "less than 1"]),
        ({"scans": []}, ["at least one"]),
        ({"scans": ["rows", "colums"]}, ['"colums"', "columns"]),
        ({"scans": ["rows"], "path": "snake"}, ["snake_rows"]),
        ({"path": "spiral"}, ['"path"', "spiral", "raster or snake"]),
        ({"arrangement": "code"}, ['"arrangement"', "'code'", "paper or released"]),
    ],
)
def test_bad_fields_are_told(fields, said):
    with pytest.raises(UserError) as error:
        connectors.create("msc_bsm", 24, 16, **{"headdim": 8} | fields)
    assert not [text for text in said if text not in str(error.value)], str(error.value)


@pytest.fixture
def deterministic(monkeypatch):
    """As in training. Otherwise the sums of the kernels' backward pass have no fixed order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arrangement", ["paper", "released"])
def test_gpu_agrees_with_cpu_and_repeats_itself(arrangement, deterministic):
    torch.manual_seed(0)
    connector = connectors.create("msc_csm", 64, 32, arrangement=arrangement, d_state=16, headdim=16)
    features = torch.randn(4, 7, 5, 64)
    connector(features).square().sum().backward()
    expected = [p.grad.clone() for p in connector.parameters()]

    def on_gpu():
        connector.zero_grad()
        connector.cuda()(features.cuda()).square().sum().backward()
        return [p.grad.clone() for p in connector.parameters()]

    first, second = on_gpu(), on_gpu()
    assert all(map(torch.equal, first, second))
    for mine, theirs in zip(first, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())
