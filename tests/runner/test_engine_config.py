"""What an engine is configured like: values of the user's kept or refused, the rest filled in."""

from types import SimpleNamespace

import header
import pytest
import torch
from modules import edit_json, engine_config
from vllm import SamplingParams, envs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform

from diffusiongemma_vllm import asked, compat
from diffusiongemma_vllm.runner import async_scheduler
from diffusiongemma_vllm.runner import engine_config as module
from diffusiongemma_vllm.runner.admission import check_knobs

CANVAS = 32


def cuda(capability):
    """vLLM's platform on a GPU of this compute capability."""
    return SimpleNamespace(is_cuda=lambda: True, is_cpu=lambda: False,
                           has_device_capability=lambda least: capability >= least)


CUDA = cuda(90)


@pytest.fixture
def configure(checkpoint):
    return lambda **options: engine_config(checkpoint, **options)


def test_defaults(configure):
    config = configure()
    assert config.diffusion_config.canvas_length == CANVAS  # the checkpoint's
    assert config.scheduler_config.max_num_seqs == module.DEFAULT_REQUESTS
    assert config.attention_config.backend.name == "TRITON_ATTN"
    assert config.scheduler_config.scheduler_cls == module.SCHEDULER
    assert config.num_speculative_tokens == CANVAS


@pytest.mark.skipif(not current_platform.is_cpu(), reason="a GPU's default is vLLM's")
def test_one_rank_on_a_cpu_works_in_its_engines_process(configure, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # else that is vLLM's default too
    assert configure().parallel_config.distributed_executor_backend == "uni"
    chosen = configure(distributed_executor_backend="mp")
    assert chosen.parallel_config.distributed_executor_backend == "mp"


def test_a_video_need_not_fit_into_one_step(configure):
    """Our scheduler keeps each picture whole; vLLM would want room for a whole video."""
    config = configure(max_num_seqs=1)
    assert not config.model_config.is_mm_prefix_lm
    assert not config.scheduler_config.disable_chunked_mm_input


def test_on_cpu_products_are_fp32_unless_the_user_says_otherwise(copy):
    edit_json(copy / "config.json", dtype="bfloat16", text_config__dtype="bfloat16")
    assert engine_config(copy).model_config.dtype == torch.float32
    assert engine_config(copy, dtype="bfloat16").model_config.dtype == torch.bfloat16


# max-num-seqs and the token budget: a step holds a canvas for every request.


def test_a_users_max_num_seqs_is_kept_and_the_budget_follows(configure):
    scheduler_config = configure(max_num_seqs=100).scheduler_config
    assert scheduler_config.max_num_seqs == 100
    assert scheduler_config.max_num_batched_tokens >= 100 * CANVAS + module.PROMPT_TOKENS


def test_even_a_value_that_vllm_would_have_chosen(configure):
    """256 is the default of some platforms; asked for, it stays."""
    assert configure(max_num_seqs=256).scheduler_config.max_num_seqs == 256


def test_a_users_budget_is_kept_and_max_num_seqs_follows(configure):
    scheduler_config = configure(max_num_batched_tokens=5 * CANVAS + 7).scheduler_config
    assert scheduler_config.max_num_batched_tokens == 5 * CANVAS + 7
    assert scheduler_config.max_num_seqs == 5


def test_both_are_kept_where_they_fit(configure):
    scheduler_config = configure(max_num_seqs=4, max_num_batched_tokens=4 * CANVAS).scheduler_config
    assert scheduler_config.max_num_seqs == 4
    assert scheduler_config.max_num_batched_tokens == 4 * CANVAS


def test_a_budget_that_would_cut_a_canvas_is_refused(configure):
    with pytest.raises(ValueError, match="--max-num-batched-tokens must be at least 128 to hold"):
        configure(max_num_seqs=4, max_num_batched_tokens=4 * CANVAS - 1)
    with pytest.raises(ValueError, match="--max-num-batched-tokens must be at least 32 to hold"):
        configure(max_num_batched_tokens=CANVAS - 1)


# Attention backend.


def test_the_model_cards_backend_and_no_backend_select_ours(configure):
    for options in ({}, {"attention_backend": "TRITON_ATTN"}):
        assert configure(**options).attention_config.use_non_causal


@pytest.mark.parametrize("backend", ["FLASH_ATTN", "FLEX_ATTENTION", "CPU_ATTN"])
def test_another_backend_is_refused_with_the_reason(configure, backend):
    with pytest.raises(ValueError, match=f"{backend} cannot mix .*; use TRITON_ATTN, or drop"):
        configure(attention_backend=backend)


# Prefix cache, length cap, scheduler.


def test_committed_canvases_stay_in_the_prefix_cache(configure):
    assert configure().cache_config.prefix_cache_retention_interval is None
    kept = configure(prefix_cache_retention_interval=64).cache_config
    assert kept.prefix_cache_retention_interval == 64


def test_no_cap_of_256_tokens(configure, checkpoint):
    model = configure().model_config
    assert "max_new_tokens" not in model.get_diff_sampling_param()
    assert "max_tokens" not in model.get_diff_sampling_param()
    capped = configure(override_generation_config={"max_new_tokens": 99}).model_config
    assert capped.get_diff_sampling_param()["max_tokens"] == 99


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_scheduler_is_async_where_vllms_is(monkeypatch, asynchronous):
    made = []
    for name in ("CanvasScheduler", "AsyncCanvasScheduler"):
        monkeypatch.setattr(
            async_scheduler, name, lambda *a, name=name, **k: made.append((name, a, k))
        )
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=asynchronous))
    async_scheduler.scheduler(vllm_config=config, log_stats=True)
    async_scheduler.scheduler(config)
    name = "AsyncCanvasScheduler" if asynchronous else "CanvasScheduler"
    assert made == [(name, (), {"vllm_config": config, "log_stats": True}), (name, (config,), {})]


def test_the_scheduler_is_found_by_its_name(configure):
    assert configure().scheduler_config.get_scheduler_cls() is async_scheduler.scheduler


# --diffusion-config.


def test_a_shorter_canvas_is_kept(configure):
    config = configure(diffusion_config={"canvas_length": 8, "max_denoising_steps": 5})
    assert config.diffusion_config.canvas_length == config.num_speculative_tokens == 8
    assert config.diffusion_config.max_denoising_steps == 5


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"canvas_length": 33}, r"canvas_length must be 1\.\.32, the checkpoint's, got 33"),
        ({"canvas_length": 0}, "canvas_length"),
        ({"canvas_length": 8, "max_denoising_steps": 0}, "max_denoising_steps must be 1 or more"),
    ],
)
def test_a_diffusion_config_out_of_range_is_refused(configure, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        configure(diffusion_config=given)


def test_steps_alone_leave_the_canvas_to_the_checkpoint(configure):
    config = configure(diffusion_config={"max_denoising_steps": 5}).diffusion_config
    assert (config.canvas_length, config.max_denoising_steps) == (CANVAS, 5)


# The KV cache.


@pytest.fixture
def fp8(copy):
    """The checkpoint, asking for a KV cache in FP8 as NVIDIA's does."""
    edit_json(copy / "config.json", quantization_config=header.QUANTIZATION)
    return copy


@pytest.mark.parametrize(("capability", "dtype"), [
    (80, "bfloat16"), (86, "bfloat16"), (89, "fp8_e4m3"), (90, "fp8_e4m3"), (120, "fp8_e4m3"),
])
def test_a_gpu_that_cannot_read_fp8_keeps_the_models_dtype(fp8, monkeypatch, capability, dtype):
    monkeypatch.setattr(module, "current_platform", cuda(capability))
    assert engine_config(fp8, dtype="bfloat16").cache_config.cache_dtype == dtype


@pytest.mark.parametrize("options", [{"kv_cache_dtype": "fp8"}, {"dtype": "float32"}])
def test_there_fp8_is_refused_where_nothing_else_will_do(fp8, monkeypatch, options):
    monkeypatch.setattr(module, "current_platform", cuda(80))
    with pytest.raises(ValueError, match="8.9 or newer: use --kv-cache-dtype auto, and --dtype bf"):
        engine_config(fp8, **{"dtype": "bfloat16"} | options)


@pytest.mark.parametrize("kept", ["auto", "fp8", "fp8_e4m3", "bfloat16"])
def test_other_caches_are_refused(configure, kept):
    assert configure(dtype="bfloat16", kv_cache_dtype=kept).cache_config.cache_dtype == kept
    for other in ("float16", "fp8_e5m2", "int8_per_token_head"):
        with pytest.raises(ValueError, match="model in bfloat16: use auto, bfloat16 or fp8"):
            configure(dtype="bfloat16", kv_cache_dtype=other)


@pytest.mark.skipif(not current_platform.is_cpu(), reason="a GPU's default is vLLM's")
def test_the_cache_leaves_a_cpus_memory_to_others(configure, monkeypatch):
    """vLLM's default asks for 92 % of it, and starts nothing where that is not free."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    size = "kv_cache_memory_bytes"
    assert getattr(configure().cache_config, size) == module.CPU_PAGES
    assert getattr(configure(**{size: 1 << 20}).cache_config, size) == 1 << 20
    assert getattr(configure(gpu_memory_utilization=0.5).cache_config, size) is None
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert getattr(configure().cache_config, size) == 1 << 30


# Refusals.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size: .* or use --tensor-parallel-size"),
        ({"enable_expert_parallel": True, "data_parallel_size": 2}, "drop --enable-expert-par"),
        ({"tensor_parallel_size": 2, "enable_lora": True}, "adapters are not divided; drop one"),
        ({"tensor_parallel_size": 3}, "3 does not divide the model: 4 attention heads need a div"),
        ({"tensor_parallel_size": 4}, "moe_intermediate_size 32 is divided in blocks of 16; use"),
        ({"logprobs_mode": "processed_logprobs"}, "log-probabilities are the model.s own"),
        ({"scheduler_cls": "a.B"}, "canvases need our own scheduler; drop --scheduler-cls"),
        ({"structured_outputs_config": {"backend": "outlines"}}, "bounds .* use auto, xgrammar or"),
        ({"structured_outputs_config": {"backend": "lm-format-enforcer"}}, "does not load with"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_fix(configure, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        configure(**options)


@pytest.mark.parametrize("name", ["VLLM_COMPUTE_NANS_IN_LOGITS", "VLLM_RAISE_ON_LOGIT_NANS"])
def test_counting_nans_is_refused(configure, monkeypatch, name):
    envs.disable_envs_cache()
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=f"unset it and {name}|{name}: .* unset it"):
        configure()


def test_the_rust_front_end_is_refused(configure, monkeypatch):
    envs.disable_envs_cache()  # an engine in this process has turned it on
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="VLLM_USE_RUST_FRONTEND bypasses .* unset it"):
        configure()


@pytest.mark.parametrize("found", ["0.31.2", "0.33.0", "0.3.2", "1.0.0"])
def test_another_vllm_is_named_with_the_supported_range(monkeypatch, found):
    monkeypatch.setattr(compat, "vllm_version", lambda: found)
    with pytest.raises(RuntimeError, match=rf"supports vLLM 0\.32\.\*, found {found}; install"):
        compat.check_version()


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1.post1", "0.32.0+cu130"])
def test_any_build_of_the_supported_vllm_will_do(monkeypatch, found):
    monkeypatch.setattr(compat, "vllm_version", lambda: found)
    compat.check_version()


# CUDA graphs, on a platform that says it has CUDA.


@pytest.fixture
def graphs(configure, monkeypatch):
    """(cudagraph_mode, capture sizes) as our hook leaves them, before the CPU turns them off."""

    class Enough(Exception):
        pass

    def choose(**options):
        seen = []

        def record(vllm_config, asked, canvas, original=module._graphs):
            original(vllm_config, asked, canvas)
            chosen = vllm_config.compilation_config
            seen.append((chosen.mode, chosen.cudagraph_mode, chosen.cudagraph_capture_sizes))
            raise Enough

        with monkeypatch.context() as patch:
            patch.setattr(module, "_graphs", record)
            patch.setattr(module, "current_platform", CUDA)
            with pytest.raises(Enough):
                configure(**options)
        mode, graph_mode, sizes = seen[0]
        assert mode == 0
        return graph_mode if graph_mode is None else graph_mode.name, sizes

    return choose


def test_graphs_are_captured_in_canvases(graphs):
    counts = [*range(1, 17), *range(18, 33, 2)]
    assert graphs() == ("FULL_DECODE_ONLY", [CANVAS * n for n in counts])


@pytest.mark.parametrize(("requests", "most"), [(1, 16), (3, 16), (10, 16), (17, 17), (24, 24)])
def test_graphs_hold_prompts_beside_canvases_up_to_16(graphs, requests, most):
    """A step of more hides its launches."""
    sizes = graphs(max_num_seqs=requests)[1]
    assert sizes == [CANVAS * n for n in sorted({*range(1, 17), 18, 20, 22, 24, most}) if n <= most]


def test_no_graph_is_larger_than_the_budget(graphs):
    assert graphs(max_num_seqs=3, max_num_batched_tokens=130)[1] == [32, 64, 96, 128]


def test_a_users_sizes_are_kept(graphs):
    assert graphs(compilation_config={"cudagraph_capture_sizes": [32, 96]})[1] == [32, 96]
    assert graphs(cudagraph_capture_sizes=[64])[1] == [64]


def test_a_users_largest_size_is_kept(graphs):
    assert graphs(max_cudagraph_capture_size=100)[1] == [32, 64, 96]


def test_sizes_that_cut_a_canvas_are_refused(configure, monkeypatch):
    monkeypatch.setattr(module, "current_platform", CUDA)
    with pytest.raises(ValueError, match="must be multiples of the canvas, 32 tokens, got"):
        configure(compilation_config={"cudagraph_capture_sizes": [32, 48]})


@pytest.mark.parametrize("mode", ["NONE", "FULL_DECODE_ONLY"])
def test_a_users_graph_mode_is_kept(graphs, mode):
    assert graphs(compilation_config={"cudagraph_mode": mode})[0] == mode


@pytest.mark.parametrize("mode", ["FULL", "PIECEWISE", "FULL_AND_PIECEWISE"])
def test_other_graph_modes_are_refused(configure, monkeypatch, mode):
    monkeypatch.setattr(module, "current_platform", CUDA)
    with pytest.raises(ValueError, match="cudagraph_mode must be NONE or FULL_DECODE_ONLY, got"):
        configure(compilation_config={"cudagraph_mode": mode})


def test_compiling_is_refused(configure):
    with pytest.raises(ValueError, match="nothing to compile .* drop the option or use mode 0"):
        configure(compilation_config={"mode": 3})


def test_eager_is_left_alone(graphs):
    assert graphs(enforce_eager=True)[0] != "FULL_DECODE_ONLY"


def test_graph_sizes_reach_the_largest_batch():
    for requests in (1, 7, 33, 200, 1024):
        sizes = module.graph_sizes(256, requests)
        assert sizes == sorted(set(sizes)) and sizes[-1] == 256 * requests and sizes[0] == 256


def test_requests_are_checked_against_the_canvas_that_is_served(configure):
    class Processor:
        vllm_config = configure(diffusion_config={"canvas_length": 20})

    processor = Processor()
    check_knobs(SamplingParams(extra_args={"diffusion_canvas_length": 20}), processor)
    with pytest.raises(VLLMValidationError, match="diffusion_canvas_length must be 1..20.* got 24"):
        check_knobs(SamplingParams(extra_args={"diffusion_canvas_length": 24}), processor)


# Where the user's values are told from defaults, and other models.


def test_asked_is_empty_outside_of_a_configuration(configure):
    configure(max_num_seqs=3)
    assert asked.asked() == {}


def test_asked_is_empty_after_a_refusal(configure):
    with pytest.raises(ValueError):
        configure(tensor_parallel_size=3)
    assert asked.asked() == {}


def test_overriding_the_generation_config_mends_it(copy):
    edit_json(copy / "generation_config.json", t_min=None)
    with pytest.raises(ValueError, match="'t_min'"):
        engine_config(copy)
    engine_config(copy, override_generation_config={"t_min": 0.4})


@pytest.fixture
def llama(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=64, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=2048,
    ).save_pretrained(tmp_path)
    return tmp_path


def test_other_models_are_configured_as_without_the_plugin(llama):
    from vllm import EngineArgs

    patched = engine_config(llama)
    original = EngineArgs.create_engine_config.__wrapped__
    plain = original(EngineArgs(model=str(llama), skip_tokenizer_init=True, max_model_len=1024,
                                dtype="float32"))
    for name in ("scheduler_config", "cache_config", "attention_config", "compilation_config"):
        assert repr(getattr(patched, name)) == repr(getattr(plain, name)), name
    assert patched.diffusion_config is None
