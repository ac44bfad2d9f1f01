"""Attention over packed documents equals a dense masked softmax, forward and backward."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipelines.errors import ConfigError, MachineError
from pipelines.shards import fill_pack_reference
from train.attention import KERNELS, Backend, PackedAttention, Scores, Segments, choose_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def dense(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scores: Scores) -> Tensor:
    """Attention written the obvious way: one mask over all pairs of tokens."""
    heads, tokens = query.shape[1], query.shape[0]
    document = torch.repeat_interleave(torch.arange(len(segments.lengths)), torch.tensor(segments.lengths))
    at = torch.arange(tokens)
    visible = (document[:, None] == document[None, :]) & (at[:, None] >= at[None, :])
    if scores.window is not None:
        visible &= at[:, None] - at[None, :] < scores.window
    visible = visible.to(query.device)
    out = []
    for head in range(heads):
        of_group = head * key.shape[1] // heads
        logits = query[:, head] @ key[:, of_group].T * scores.scale
        if scores.softcap is not None:
            logits = scores.softcap * (logits / scores.softcap).tanh()
        weights = logits.masked_fill(~visible, -torch.inf).exp()
        sink = 0.0 if scores.sinks is None else scores.sinks[head].exp()
        out.append(weights / (weights.sum(1, keepdim=True) + sink) @ value[:, of_group])
    return torch.stack(out, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int, int, Scores]:
    """Document lengths, query heads, kv heads, value size and scores."""
    groups, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    heads = groups * kv_heads
    scores = Scores(
        scale=draw(st.sampled_from([0.35, 1.0])),
        window=draw(st.none() | st.integers(1, 9)),
        softcap=draw(st.none() | st.just(2.0)),
        sinks=draw(st.none() | st.just(torch.linspace(-1, 1, heads))),
    )
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    return lengths, heads, kv_heads, draw(st.sampled_from([4, 6])), scores


@given(cases())
def test_documents_attend_only_to_their_own_past(case: tuple[list[int], int, int, int, Scores]) -> None:
    lengths, heads, kv_heads, value_size, scores = case
    segments = Segments.of(lengths)
    torch.manual_seed(sum(lengths))
    shapes = [(sum(lengths), heads, 4), (sum(lengths), kv_heads, 4), (sum(lengths), kv_heads, value_size)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    sinks = None if scores.sinks is None else scores.sinks.double().requires_grad_()
    scores = replace(scores, sinks=sinks)
    wanted = [*inputs, *([] if sinks is None else [sinks])]
    found = KERNELS["sdpa"](*inputs, segments, scores)  # type: ignore[call-arg,arg-type]
    expected = dense(*inputs, segments, scores)  # type: ignore[call-arg,arg-type]
    # The scores with caps or sinks are float32 in the kernel, as Transformers has them.
    close = 1e-5 if scores.softcap or sinks is not None else 1e-10
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, wanted, upstream)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, wanted, upstream), strict=True):
        torch.testing.assert_close(gradient, right, rtol=close, atol=close)


@given(cases(), st.integers(1, 5))
def test_stretches_of_queries_give_what_the_whole_gives(
    case: tuple[list[int], int, int, int, Scores], parts: int
) -> None:
    lengths, heads, kv_heads, value_size, scores = case
    segments = Segments.of(lengths).padded(parts)
    assert segments.tokens % parts == 0
    assert segments.lengths[: len(lengths)] == lengths
    torch.manual_seed(sum(lengths))
    shapes = [(segments.tokens, heads, 4), (segments.tokens, kv_heads, 4), (segments.tokens, kv_heads, value_size)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    query, key, value = inputs
    length = segments.tokens // parts
    outs = []
    for start in range(0, segments.tokens, length):
        mine, seen = segments.stretch(start, start + length)
        assert mine.tokens == length
        outs.append(KERNELS["sdpa"](query[start : start + length], key[seen], value[seen], mine, scores))
    found, expected = torch.cat(outs), dense(query, key, value, segments, scores)
    close = 1e-5 if scores.softcap or scores.sinks is not None else 1e-10
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, upstream)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(gradient, right, rtol=close, atol=close)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 8))
def test_every_part_of_a_pack_has_boundaries_that_fill_it(lengths: list[int], parts: int) -> None:
    whole = Segments.of(lengths).padded(parts)
    size = whole.tokens // parts
    assert size * parts == whole.tokens >= sum(lengths)
    covered: list[int] = []
    for part in range(parts):
        mine, seen = whole.stretch(part * size, (part + 1) * size)
        assert fill_pack_reference(mine.cu_seqlens.numpy(), size)
        assert fill_pack_reference(mine.cu_seqlens_k.numpy(), seen.stop - seen.start)
        assert seen.stop == (part + 1) * size
        assert all(queries <= keys for queries, keys in zip(mine.lengths, mine.key_lengths, strict=True))
        assert (mine.longest, mine.longest_k) == (max(mine.lengths), max(mine.key_lengths))
        covered += [seen.start + end for end in mine.cu_seqlens_k.tolist()]
    ends = whole.cu_seqlens.tolist()
    assert set(ends) <= set(covered) <= {*ends, *range(0, whole.tokens + 1, size)}


@pytest.mark.parametrize("lengths", [[3, 0], [0], [2, -1]])
def test_boundaries_that_do_not_rise_are_our_mistake(lengths: list[int]) -> None:
    with pytest.raises(AssertionError):
        Segments.of(lengths)


def test_stretch_has_the_keys_before_its_queries() -> None:
    stretch, seen = Segments.of([3, 5, 2]).stretch(5, 9)
    assert (stretch.lengths, stretch.key_lengths, seen) == ([3, 1], [5, 1], slice(3, 9))
    assert (stretch.cu_seqlens.tolist(), stretch.cu_seqlens_k.tolist()) == ([0, 3, 4], [0, 5, 6])
    whole, every = Segments.of([3, 5, 2]).stretch(0, 10)
    assert (whole.lengths, whole.key_lengths, every) == ([3, 5, 2], [3, 5, 2], slice(0, 10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2"])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cuda_kernels_align_the_ends_of_queries_and_keys(backend: Backend, window: int | None, kv_heads: int) -> None:
    if backend == "flash_attention_2":
        pytest.importorskip("flash_attn")
    whole = Segments.of([1, 70, 33, 128], CUDA)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(232, heads, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    scores = Scores(scale=0.125, window=window)
    outs = []
    for start in range(0, 232, 58):  # inside the second document, and twice inside the last
        mine, seen = whole.stretch(start, start + 58)
        outs.append(KERNELS[backend](query[start : start + 58], key[seen], value[seen], mine, scores))
    found, expected = torch.cat(outs), dense(query.float(), key.float(), value.float(), whole, scores)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, (query, key, value), upstream.bfloat16())
    for gradient, right in zip(gradients, torch.autograd.grad(expected, (query, key, value), upstream), strict=True):
        torch.testing.assert_close(gradient.float(), right.float(), rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2"])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cuda_kernels_agree_with_the_mask(backend: Backend, window: int | None, kv_heads: int) -> None:
    if backend == "flash_attention_2":
        pytest.importorskip("flash_attn")
    segments = Segments.of([1, 70, 33, 128], CUDA)
    torch.manual_seed(0)
    inputs = [
        torch.randn(232, heads, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    ]
    scores = Scores(scale=0.125, window=window)
    found = KERNELS[backend](*inputs, segments, scores)  # type: ignore[call-arg,arg-type]
    expected = dense(*(tensor.float() for tensor in inputs), segments, scores)  # type: ignore[call-arg,arg-type]
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, upstream.bfloat16())
    for gradient, right in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(gradient.float(), right.float(), rtol=5e-2, atol=5e-2)


def test_what_would_be_ignored_is_refused() -> None:
    attention = PackedAttention("sdpa")
    tensor = torch.zeros(1, 2, 5, 4)
    with attention.over(Segments.of([3, 2])):
        assert attention(torch.nn.Identity(), tensor, tensor, tensor, None, use_cache=False)[0].shape == (1, 5, 2, 4)
        with pytest.raises(
            ConfigError, match="Identity: attention with attention_mask, position_bias is not supported"
        ):
            attention(torch.nn.Identity(), tensor, tensor, tensor, tensor, position_bias=tensor)
        with pytest.raises(
            ConfigError, match="Identity: 1 x 5 queries and 4 keys, where documents have 5 tokens, is not supp"
        ):
            attention(torch.nn.Identity(), tensor, tensor[:, :, :4], tensor[:, :, :4])


def test_kernel_without_a_feature_refuses_it() -> None:
    tensor = torch.zeros(1, 2, 5, 4)
    strict, free = PackedAttention("varlen"), PackedAttention("varlen", strict=False)
    with (
        strict.over(Segments.of([5])),
        pytest.raises(ConfigError, match=r'"varlen": cannot compute .* sinks and softcap'),
    ):
        strict(torch.nn.Identity(), tensor, tensor, tensor, softcap=30.0, s_aux=torch.zeros(2))
    with free.over(Segments.of([5])):
        free(torch.nn.Identity(), tensor, tensor, tensor, softcap=30.0)
    assert free.backend == "sdpa", "and run.json says so"


def test_backend_follows_the_device() -> None:
    assert choose_backend("auto", CPU, half=True) == "sdpa"
    assert choose_backend("auto", CUDA, half=False) == "sdpa"
    assert choose_backend("auto", CUDA, half=True) in ("varlen", "flash_attention_2")
    assert choose_backend("sdpa", CUDA, half=True) == "sdpa"
    with pytest.raises(MachineError, match='attn_implementation = "varlen": needs a CUDA device'):
        choose_backend("varlen", CPU, half=True)
    with pytest.raises(ConfigError, match='attn_implementation = "varlen": computes in bf16 and fp16 only'):
        choose_backend("varlen", CUDA, half=False)
