"""What must hold of a connector whoever wrote it: identities, in float64 to 1e-12, without the authors' code."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import connectors
from ablate.core.errors import UserError
from connectors.attention import attend
from connectors.contract import Features
from connectors.grids import average_to, resize_to, space_to_depth, windows

C, D = 8, 16


def make(name, in_dim=C, out_dim=D, *, seed=0, **fields):
    torch.manual_seed(seed)
    return connectors.create(name, in_dim, out_dim, **fields).double().eval()


def grid(height=6, width=6, channels=C, n=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, height, width, channels, generator=generator, dtype=torch.float64)


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def copied(target, source):
    target.load_state_dict(source.state_dict())
    return target


# -- Grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 5), (7, 7), (9, 2)], ids=str)
def test_pooling_and_resizing_are_pytorchs(size):
    features = grid(7, 5)
    image = features.permute(0, 3, 1, 2)
    assert_same(average_to(features, *size), F.adaptive_avg_pool2d(image, size).permute(0, 2, 3, 1))
    resized = F.interpolate(image, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    assert_same(resize_to(features, *size), resized)


def test_windows_are_unfold():
    features = grid(4, 6)
    unfolded = F.unfold(features.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # (n, tokens, c * 4)
    by_channel = windows(features, 2).flatten(1, 2).transpose(2, 3).flatten(2)
    assert_same(by_channel, unfolded)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_pytorchs(groups):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 5, 4 * groups, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, True], [True, False, False, False, False]])

    def heads(x):
        return x.unflatten(-1, (-1, 4)).transpose(1, 2)

    expected = F.scaled_dot_product_attention(
        heads(query), heads(key), heads(value), attn_mask=mask[:, None, None], enable_gqa=True
    )
    assert_same(attend(query, key, value, 4, mask), expected.transpose(1, 2).flatten(2))


def test_average_pooling_is_a_linear_layer_of_neighbours():
    features, linear = grid(), nn.Linear(C, D, bias=False).double()
    shuffled = make("pixel_shuffle")
    with torch.no_grad():
        shuffled.projection.weight.copy_(linear.weight.repeat(1, 4) / 4)
    assert_same(shuffled(features), linear(average_to(features, 3, 3)).flatten(1, 2))


def test_a_convolution_without_overlap_is_a_linear_layer_of_neighbours():
    features, pooler, shuffled = grid(), make("pooler"), make("pixel_shuffle")
    with torch.no_grad():
        pooler.pool.bias.zero_()
        shuffled.projection.weight.copy_(pooler.pool.weight.permute(0, 2, 3, 1).flatten(1))
    assert_same(pooler.projection(F.gelu(shuffled(features))), pooler(features))


# -- Patch by patch ---------------------------------------------------------------------------------------------------


def test_mlp_and_fused_gelu_mlp_differ_in_their_initial_weights_alone():
    features, ours, fused = grid(), make("mlp"), make("fused_gelu_mlp")
    assert not torch.equal(ours(features), fused(features))
    assert_same(copied(fused, ours)(features), ours(features))


def test_a_residual_mlp_without_blocks_is_a_plain_one():
    features = grid()
    plain = make("residual_mlp", blocks=0)
    assert_same(plain(features), copied(make("mlp2x_gelu"), plain)(features))


def test_the_gate_of_zero_weights_is_one_and_a_half():
    features, gated = grid(), make("se_mlp")
    nn.init.zeros_(gated.gate[2].weight)
    assert_same(gated(features), gated.mlp(1.5 * features.flatten(1, 2)))


@pytest.mark.parametrize("name", ["zero_linear", "gemma3"])
def test_what_starts_at_zero_gives_zeros(name):
    assert not make(name)(grid(8, 8)).any()


# -- Pooling ----------------------------------------------------------------------------------------------------------


def test_pooling_before_a_linear_layer_is_pooling_after_it_but_not_for_an_mlp():
    features = grid()
    linear = make("linear")
    assert_same(linear(average_to(features, 3, 3)), average_to(linear.projection(features), 3, 3).flatten(1, 2))
    before, after = make("adaptive_avg", side=3), make("pool_after", mode="average")
    copied(after, before)
    assert (before(features) - after(features)).abs().max() > 1e-3


def test_bilinear_pooling_of_27_rows_makes_14():
    pooled = make("pool_after")
    assert pooled.num_tokens(27, 27) == 14 * 14
    assert make("pool_after", mode="average").num_tokens(27, 27) == 13 * 13
    image = pooled.mlp(grid(27, 27)).permute(0, 3, 1, 2)
    expected = F.interpolate(image, (14, 14), mode="bilinear", align_corners=False)
    assert_same(pooled(grid(27, 27)), expected.flatten(2).transpose(1, 2))


def test_internvls_versions_are_transposed():
    features = grid(4, 6)
    first, second = make("internvl", version="v1"), make("internvl", version="v2")
    tokens = first(features).unflatten(1, (3, 2))
    assert_same(tokens.transpose(1, 2).flatten(1, 2), second(features))


def test_padding_leaves_even_grids_alone_and_adds_zeros_to_odd_ones():
    for name in ("pixel_shuffle", "internvl", "qwen2vl_merger", "mistral3_merger"):
        padded, strict = make(name, pad=True), make(name)
        assert_same(padded(grid(4, 6)), strict(grid(4, 6)))
        with pytest.raises(UserError, match="multiples of 2, got 5 x 6"):
            strict.check_grid(5, 6)
        assert padded(grid(5, 6)).shape[1] == padded.num_tokens(5, 6) == 9
    odd = grid(5, 5)
    vila = make("mlp_downsample")
    assert_same(vila(odd), vila(F.pad(odd, (0, 0, 0, 1, 0, 1))))


def test_mistrals_merger_reads_neighbours_by_channel():
    features, mistral = grid(), make("mistral3_merger")
    merged = F.linear(space_to_depth(mistral.norm(features), 2).flatten(1, 2), reordered(mistral.merge.weight))
    assert_same(mistral(features), mistral.mlp(merged))


def reordered(weight):
    """(c, kernel row, kernel column) -> (kernel row, kernel column, c)."""
    return weight.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1)


def test_ldpv2_without_its_convolution_is_pool_after_the_mlp():
    ldp = make("ldpv2", side=3)
    nn.init.zeros_(ldp.position.weight)
    nn.init.zeros_(ldp.position.bias)
    assert_same(ldp(grid()), average_to(ldp.mlp(grid()), 3, 3).flatten(1, 2))


def test_a_c_abstractor_without_blocks_is_positions_pooling_and_an_mlp():
    abstractor = make("c_abstractor", depth=0, positions=6, side=3)
    expected = abstractor.mlp(average_to(grid() + abstractor.positions, 3, 3)).flatten(1, 2)
    assert_same(abstractor(grid()), expected)


# -- Attention within windows -----------------------------------------------------------------------------------------


def test_attention_that_asks_nothing_is_the_mean_of_its_window():
    features = grid(4, 4)
    molmo = make("molmo_pool", width=8, heads=2)
    for part in (molmo.attention.query.weight, molmo.attention.query.bias):
        nn.init.zeros_(part)
    mean = windows(molmo.attention.value(features), 2).mean(dim=3).flatten(1, 2)
    assert_same(molmo(features), molmo.mlp(molmo.attention.out(mean)))

    packer = make("token_packer", (5, 3), width=8, heads=2)
    for part in (packer.attention.query.weight, packer.attention.query.bias):
        nn.init.zeros_(part)
    values = packer.attention.value(packer.value(features))
    mean = windows(values, 2).mean(dim=3).flatten(1, 2)
    assert_same(packer(Features.split(features, (5, 3))), packer.mlp(packer.attention.out(mean)))


def test_sva_with_constant_logits_sees_the_mean_of_its_windows():
    features, sva = grid(4, 4), make("sva", (C,), factor=2, depth=1, width=8, heads=2)
    layer = sva.layers[0]
    nn.init.zeros_(layer.query[1].weight)
    views = windows(sva.read[0](features), 2).flatten(1, 2)  # (n, q, 4, width)
    asked = layer.context(torch.cat([sva.query.expand(2, 4, -1), views.mean(dim=2)], dim=-1))
    seen = layer.attended(layer.values[0](views).mean(dim=2))
    expected = sva.mlp(sva.query + layer.out(layer.norm(asked + seen)))
    assert_same(sva(Features.split(features, (C,))), expected)


def test_sva_does_not_see_what_is_masked():
    features = grid(4, 4)
    sva = make("sva", (C,), factor=2, depth=2, width=8, heads=2)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[:, :, 3] = False
    seen = [Features(each, (connectors.FeatureMap(each, 0, mask),)) for each in (features, features.clone())]
    seen[1].fused[:, :, 3] = 100.0
    assert_same(sva(seen[1]), sva(seen[0]))


# -- Queries ----------------------------------------------------------------------------------------------------------


def permuted(features, seed=0):
    order = torch.randperm(features.shape[1] * features.shape[2], generator=torch.Generator().manual_seed(seed))
    return features.flatten(1, 2)[:, order].view_as(features)


@pytest.mark.parametrize(
    ("name", "fields", "moves"),
    [
        ("perceiver", {"latents": 5, "depth": 2, "heads": 2, "head_dim": 4}, False),
        ("idefics2", {"latents": 5, "depth": 2, "heads": 2, "groups": 1, "head_dim": 4}, False),
        ("qformer", {"queries": 5, "depth": 2, "width": 16, "heads": 2, "read_question": False}, False),
        ("qwen_resampler", {"side": 2, "heads": 2}, True),
        ("honeybee_resampler", {"side": 2, "depth": 2, "width": 16, "heads": 2}, True),
        ("c_abstractor", {"side": 3, "depth": 1, "width": 16}, True),
        ("ldp", {}, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whether_the_order_of_the_patches_matters(name, fields, moves):
    connector = make(name, **fields)
    with torch.no_grad():  # what starts equal or from zero has learned something
        for parameter in connector.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=parameter.dtype))
    difference = (connector(permuted(grid())) - connector(grid())).abs().max()
    assert difference > 1e-6 if moves else difference < 1e-12


def test_idefics2_begins_with_equal_tokens():
    tokens = make("idefics2", latents=5, depth=2, heads=2, groups=1, head_dim=4)(grid())
    assert_same(tokens, tokens[:, :1].expand_as(tokens))


def test_mqts_first_tokens_are_the_same_however_many_are_asked_for():
    mqt = make("mqt", queries=12, heads=2)
    whole = mqt(grid(), size=12)
    for size in mqt.sizes:
        assert_same(mqt(grid(), size=size), whole[:, :size])


def test_mqts_attention_does_not_depend_on_the_image():
    """So the tokens are linear in the normed patches: those of a mean are the mean of the tokens."""
    mqt = make("mqt", queries=4, heads=2)
    mqt.norm_patches = nn.Identity()
    one, other = grid(seed=1), grid(seed=2)
    assert_same(mqt((one + other) / 2), (mqt(one) + mqt(other)) / 2)


def test_m3s_coarser_grids_are_means_of_the_finer():
    m3 = make("m3", sides=(1, 3, 6, 12, 24))
    finest = m3(grid(24, 24), size=576).unflatten(1, (24, 24))
    for side in (12, 6, 3, 1):
        coarser = m3(grid(24, 24), size=side * side).unflatten(1, (side, side))
        assert_same(coarser, average_to(finest, side, side))
        finest = coarser


def test_a_matformers_parts_are_mlps_of_their_own():
    whole = make("matformer_mlp")
    for size in whole.sizes:
        part = make("matformer_mlp", hidden=size)
        with torch.no_grad():
            part.first.weight.copy_(whole.first.weight[:size])
            part.first.bias.copy_(whole.first.bias[:size])
            part.second.weight.copy_(whole.second.weight[:, :size])
            part.second.bias.copy_(whole.second.bias)
        assert_same(part(grid(), size=size), whole(grid(), size=size))


def test_deformable_attention_is_grid_sampling():
    attention = make("d_abstractor", side=3, depth=1, width=8, heads=2, points=2).layers[0].read
    nn.init.normal_(attention.offsets.weight)
    nn.init.normal_(attention.weights.weight)
    features, queries = grid(5, 7), grid(1, 4, seed=3).flatten(1, 2)
    references = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = attention.value(features).unflatten(-1, (2, 4)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (n heads, c, h, w)
    offsets = (attention.offsets(queries).unflatten(-1, (2, 2, 2)) + attention.ways) / torch.tensor(
        [7.0, 5.0], dtype=torch.float64
    )
    place = 2 * (references[:, None, None] + offsets) - 1
    sampled = F.grid_sample(value, place.transpose(1, 2).flatten(0, 1), align_corners=False)  # (n heads, c, q, points)
    weights = attention.weights(queries).unflatten(-1, (2, 2)).softmax(-1).transpose(1, 2).flatten(0, 1)
    mixed = (sampled * weights[:, None]).sum(-1).unflatten(0, (2, 2)).permute(0, 3, 1, 2).flatten(2)
    assert_same(attention(queries, features, references), attention.out(mixed))


# -- Towers and choices -----------------------------------------------------------------------------------------------


def test_mof_interleaves_the_towers():
    mof = make("mof", (5, 3))
    features = Features.split(grid(), (5, 3))
    tokens = mof(features)
    assert tokens.shape[1] == 2 * 36
    for tower in (0, 1):
        assert_same(tokens[:, tower::2], mof.mlps[tower](features.maps[tower].values.flatten(1, 2)))


def test_espressos_tokens_do_not_grow_with_the_towers():
    fields = {"latents": 5, "depth": 1, "heads": 2, "head_dim": 4}
    for towers in ((8,), (5, 3), (3, 3, 2)):
        assert make("espresso", towers, **fields)(Features.split(grid(), towers)).shape == (2, 5, D)


@pytest.mark.parametrize("name", ["first_tokens", "uniform_tokens", "random_tokens"])
def test_a_choice_of_all_patches_is_linear(name):
    chosen, linear = make(name, tokens=100), make("linear")
    copied(linear, chosen)
    assert_same(chosen(grid()), linear(grid()))
    few = make(name, tokens=9)
    kept = few(grid())
    everything = copied(make("linear"), few)(grid())
    found = (kept[:, :, None] == everything[:, None]).all(-1).any(dim=0).nonzero()
    assert len(found) == 9
    assert found[:, 1].tolist() == sorted(set(found[:, 1].tolist())), "in reading order, none twice"


def test_random_tokens_are_the_same_for_every_seed_of_the_run():
    def kept(seed, draw=0):
        return make("random_tokens", tokens=9, seed=seed, draw=draw)._choose(9, 36).tolist()

    assert kept(0) == kept(1) != kept(0, draw=1)


# -- Published sizes --------------------------------------------------------------------------------------------------

CLIP, SIGLIP, LLM = 1024, 1152, 4096


def perceiver_parameters(c, d, depth=6, latents=64, inner=512):
    layer = 4 * d + 4 * d * inner + 2 * d + 8 * d * d
    return c * d + d + latents * d + depth * layer + 2 * d


@pytest.mark.parametrize(
    ("name", "in_dim", "out_dim", "fields", "parameters", "side", "tokens"),
    [
        ("linear", CLIP, LLM, {}, 4_198_400, 24, 576),  # LLaVA: (4096, 1024) and 4096
        ("mlp2x_gelu", CLIP, LLM, {}, 20_979_712, 24, 576),  # LLaVA-1.5-7B: mm_projector.{0,2}
        ("fused_gelu_mlp", 2176, LLM, {}, 71_385_600, 27, 729),  # Prismatic's DINOv2 + SigLIP
        ("adaptive_avg", CLIP, LLM, {}, 20_979_712, 24, 144),
        ("pool_after", SIGLIP, 3584, {}, SIGLIP * 3584 + 3584 + 3584 * 3584 + 3584, 27, 196),
        ("gemma3", SIGLIP, 2560, {}, SIGLIP * 2560 + SIGLIP, 64, 256),  # mm_input_projection_weight, mm_soft_emb_norm
        ("pixel_shuffle", 768, 960, {"factor": 4}, 16 * 768 * 960, 32, 64),  # nanoVLM: 11,796,480
        ("internvl", CLIP, LLM, {}, 33_570_816, 32, 256),  # InternVL2-8B: mlp1.{0,1,3}
        ("mlp_downsample", SIGLIP, LLM, {"factor": 3}, None, 27, 81),
        ("qwen2vl_merger", 1280, 3584, {}, 2560 + 5120 * 5120 + 5120 + 5120 * 3584 + 3584, 32, 256),
        ("mistral3_merger", CLIP, 5120, {}, CLIP + 4 * CLIP * CLIP + CLIP * 5120 + 5120 * 5120, 32, 256),
        ("ldp", CLIP, 2048, {}, None, 24, 144),
        ("ldpv2", CLIP, 2048, {}, CLIP * 2048 + 2048 + 2048 * 2048 + 2048 + 9 * 2048 + 2048, 24, 144),
        ("ldpv2", 2176, 2560, {"side": 14}, None, 27, 196),  # Cobra
        ("c_abstractor", CLIP, LLM, {}, None, 24, 144),
        ("molmo_pool", 2 * CLIP, 3584, {"hidden": 9472}, None, 24, 144),
        ("perceiver", CLIP, LLM, {}, perceiver_parameters(CLIP, LLM), 24, 64),
        ("qformer", 1408, LLM, {"read_question": False}, None, 16, 32),
        ("qwen_resampler", 1664, LLM, {}, None, 32, 256),
        ("m3", CLIP, LLM, {}, 20_979_712, 24, 576),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_published_sizes(name, in_dim, out_dim, fields, parameters, side, tokens):
    with torch.device("meta"):
        connector = connectors.create(name, in_dim, out_dim, **fields)
    assert connectors.tokens_per_image(connector, side, side) == tokens
    if parameters is not None:
        assert sum(parameter.numel() for parameter in connector.parameters()) == parameters


def test_the_q_former_has_berts_size():
    """BLIP-2's Q-Former of 12 layers has 105 M parameters without the text's feed-forward and embeddings."""
    with torch.device("meta"):
        blip2 = connectors.create("qformer", 1408, LLM, read_question=False)
        instruct = connectors.create("qformer", 1408, LLM)
    layers = sum(parameter.numel() for parameter in blip2.layers.parameters())
    attention, mlp = 4 * (768 * 768 + 768) + 2 * 768, 2 * 4 * 768 * 768 + 5 * 768 + 2 * 768
    cross = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    assert layers == 12 * (attention + mlp) + 6 * cross
    assert math.isclose(layers, 105e6, rel_tol=0.01)
    text = sum(p.numel() for name, p in instruct.layers.named_parameters() if "text_mlp" in name)
    assert text == 11 * mlp
