"""What every connector must do, whatever its name: driven by the registry, so a new file is tested by existing."""

import pytest
import torch

import connectors

IN_DIM, OUT_DIM = 24, 16
# Small enough to be fast, large enough that nothing is 1 by chance.
SMALL = {"d_state": 8, "headdim": 8, "chunk_size": 5}


def variants():
    """Every connector in every combination of the choices that change what it computes."""
    for name in connectors.names():
        own = {field.name for field in connectors.describe(name).fields}
        if "arrangement" not in own:
            yield pytest.param(name, {}, id=name)
            continue
        for arrangement in ("paper", "released"):
            for path in ("raster", "snake"):
                fields = SMALL | {"arrangement": arrangement, "path": path}
                yield pytest.param(name, fields, id=f"{name}-{arrangement}-{path}")


each_variant = pytest.mark.parametrize(("name", "fields"), list(variants()))
each_grid = pytest.mark.parametrize("grid", [(3, 3), (2, 5), (4, 1), (1, 1)], ids=lambda grid: f"{grid[0]}x{grid[1]}")


def build(name, fields, seed=0, **more):
    torch.manual_seed(seed)
    return connectors.create(name, IN_DIM, OUT_DIM, **fields, **more)


def images(batch=3, grid=(3, 4), seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *grid, IN_DIM, generator=generator, dtype=dtype)


@each_variant
@each_grid
def test_any_grid_becomes_tokens_of_the_language_model(name, fields, grid):
    connector = build(name, fields)
    features = images(grid=grid)
    tokens = connectors.check_tokens(connector, features, connector(features), OUT_DIM)
    assert tokens.shape == (3, connectors.tokens_per_image(connector, *grid), OUT_DIM)
    assert tokens.dtype == torch.float32
    assert tokens.isfinite().all()


@each_variant
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
def test_no_image_or_no_patch_gives_no_token_and_gradients_of_zero(name, fields, shape):
    connector = build(name, fields)
    features = torch.zeros(*shape, IN_DIM, requires_grad=True)
    tokens = connectors.check_tokens(connector, features, connector(features), OUT_DIM)
    assert tokens.numel() == 0
    tokens.sum().backward()
    assert features.grad.shape == features.shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in connector.parameters())


@each_variant
def test_gradient_reaches_every_parameter_and_the_features(name, fields):
    connector = build(name, fields).eval()
    features = images().requires_grad_()
    connector(features).square().sum().backward()
    dead = [key for key, p in connector.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert not dead
    assert (features.grad.abs().sum(dim=(0, 3)) > 0).all()


@each_variant
def test_same_seed_same_bits_other_seed_other_weights(name, fields):
    def run(seed):
        connector = build(name, fields, seed)
        tokens = connector(images())
        tokens.square().sum().backward()
        return tokens, [p.grad for p in connector.parameters()], connector.state_dict()

    tokens, gradients, weights = run(0)
    again, gradients_again, _ = run(0)
    assert torch.equal(tokens, again)
    assert all(map(torch.equal, gradients, gradients_again))
    _, _, others = run(1)
    drawn = [key for key, weight in weights.items() if weight.unique().numel() > 1]
    assert drawn
    assert not [key for key in drawn if torch.equal(weights[key], others[key])]


@each_variant
def test_the_global_generator_goes_on_from_where_it_was(name, fields):
    """A connector that seeds the generator gives every run the same weights, whatever its seed."""
    states = []
    for seed in (0, 1):
        build(name, fields, seed)
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)


@each_variant
def test_rows_of_the_batch_do_not_see_each_other(name, fields):
    connector = build(name, fields).eval().double()
    features = images(dtype=torch.float64)
    others = features.clone()
    others[1:] = 100 * images(2, seed=2, dtype=torch.float64)
    torch.testing.assert_close(connector(features)[0], connector(others)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(connector(features)[:1], connector(features[:1]), rtol=0, atol=1e-12)


@each_variant
def test_state_dict_round_trip(name, fields):
    connector, other = build(name, fields, 0).eval(), build(name, fields, 1).eval()
    features = images()
    assert not torch.equal(connector(features), other(features))
    other.load_state_dict(connector.state_dict())
    assert torch.equal(connector(features), other(features))


@each_variant
def test_bfloat16_autocast_stays_near_float32(name, fields):
    connector = build(name, fields).eval()
    features = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = connector(features)
        tokens.float().square().sum().backward()
    assert tokens.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in connector.parameters())
    expected = connector(features)
    error = (tokens.float() - expected).norm() / expected.norm()
    assert error < 0.05


@each_variant
def test_meets_a_grid_first_in_inference_mode_and_then_trains(name, fields):
    """Evaluation may come first; what is cached for a grid there must serve training too."""
    connector = build(name, fields)
    features = images(grid=(3, 7))
    with torch.inference_mode():
        connector(features)
    connector(features).sum().backward()
    assert all(p.grad is not None for p in connector.parameters())
