"""What a request's sampling parameters become."""

from diffusiongemma_vllm.request import RequestOptions, draw_seed, request_options


def params(**changes):
    from vllm import SamplingParams

    return SamplingParams(**changes)


def test_the_defaults_leave_the_distribution_alone():
    options = request_options(params())
    assert options == RequestOptions(temperature=1.0, top_k=0, top_p=1.0, seed=0)
    assert not options.filtered and not options.greedy


def test_values_are_taken_over():
    options = request_options(params(temperature=0.5, top_k=40, top_p=0.9, seed=7))
    assert options == RequestOptions(temperature=0.5, top_k=40, top_p=0.9, seed=7)
    assert options.filtered


def test_vllm_writes_minus_one_for_all_tokens():
    assert request_options(params(top_k=-1)).top_k == 0
    assert not request_options(params(top_k=-1)).filtered


def test_one_filter_is_enough():
    assert request_options(params(top_k=1)).filtered
    assert request_options(params(top_p=0.99)).filtered


def test_temperature_0_is_greedy():
    assert request_options(params(temperature=0.0)).greedy
    assert not request_options(params(temperature=1e-6)).greedy


def test_a_seed_fits_63_bits():
    """Whatever sign or size: it is kept in an i64 tensor."""
    for seed in (-1, -5, 2**63, 2**64 + 3):
        assert 0 <= request_options(params(seed=seed)).seed < 2**63
    assert request_options(params(seed=2**64 + 3)).seed == 3
    assert request_options(params(seed=-2)).seed == 2**63 - 2


def test_a_request_without_a_seed_draws_one():
    drawn = {draw_seed(1.0) for _ in range(8)}
    assert len(drawn) == 8 and all(0 <= seed < 2**31 for seed in drawn)


def test_greedy_requests_start_alike():
    assert draw_seed(0.0) == draw_seed(0.0) == 0
