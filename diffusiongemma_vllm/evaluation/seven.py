"""The seven benchmarks of the model card, with its settings: zero-shot chats, thinking on.

The card says neither its prompts nor how often it asks; its percentages of AIME and HumanEval are
multiples of a tenth of a question, so both are asked ten times here.
"""

from __future__ import annotations

from diffusiongemma_vllm.evaluation import arithmetic, instructions, letters, programs
from diffusiongemma_vllm.evaluation.benchmark import Benchmark, Card, Source

SEVEN = (
    Benchmark(
        "gpqa_diamond", "GPQA Diamond",
        Source("Idavidrein/gpqa", "gpqa_diamond", "train", gated=True),
        letters.gpqa, letters.score_gpqa, Card(69.4, 68.6), draws=5,
    ),
    Benchmark(
        "aime25", "AIME 2025", Source("math-ai/aime25", None, "test"),
        arithmetic.aime, arithmetic.score_aime, Card(68.33, 67.33), draws=10,
    ),
    Benchmark(
        "gsm8k", "GSM8K", Source("openai/gsm8k", "main", "test"),
        arithmetic.gsm8k, arithmetic.score_gsm8k, Card(94.54, 94.01),
    ),
    Benchmark(
        "ifeval", "IFEval", Source("google/IFEval", None, "train"),
        instructions.prompt, instructions.score, Card(94.01, 94.56),
        points=instructions.points,
    ),
    Benchmark(
        "humaneval", "HumanEval", Source("openai/openai_humaneval", None, "test"),
        programs.prompt, programs.refuse, Card(94.09, 95.00), draws=10, runs_code=True,
    ),
    Benchmark(
        "mmmlu", "MMMLU", Source("openai/MMMLU", "default", "test"),
        letters.mmmlu, letters.score_mmmlu, Card(88.50, 88.13),
    ),
    Benchmark(
        "mmlu_pro", "MMLU-Pro", Source("TIGER-Lab/MMLU-Pro", None, "test"),
        letters.mmlu_pro, letters.score_mmlu_pro, Card(81.0, 80.7),
    ),
)
BY_NAME = {benchmark.name: benchmark for benchmark in SEVEN}
