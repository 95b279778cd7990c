"""A model that is not ours is served exactly as without the plugin: same tokens, same log."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

SCRIPT = """
import sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], skip_tokenizer_init=True, max_model_len=256, max_num_seqs=2,
              dtype="float32", enforce_eager=True)
    asked = [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": list(range(3, 60))}]
    said = llm.generate(asked, SamplingParams(max_tokens=12, temperature=0, detokenize=False),
                        use_tqdm=False)
    print("TOKENS", [list(out.outputs[0].token_ids) for out in said])
"""
# What differs between two runs of the same thing: times, processes, ports, measured numbers.
VOLATILE = re.compile(
    r"pid[ =]\d+|\d\d-\d\d \d\d:\d\d:\d\d|0x[0-9a-f]+|tcp://\S+|/tmp/\S+|\d+(\.\d+)?(?=\s*(s|secs|"
    r"seconds|GiB|it/s|toks/s)\b)|utils.cpp:\d+|W\d{4} [\d:.]+|ipc://\S+|shm_\w+|psm_\w+|\d+\.\d+"
)

NOISE = re.compile(r"plugin|\[shutdown\]|cgroup memory preflight", re.IGNORECASE)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


def run(folder, **environment):
    # The engine stays in the process: one import of vLLM less.
    ours = ("DIFFUSIONGEMMA_VLLM_INTERPRETER", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_LOGGING_LEVEL",
            "TRITON_INTERPRET")
    env = {key: value for key, value in os.environ.items() if key not in ours}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=500,
        env=env | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | environment,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    tokens = re.search(r"TOKENS (.*)", text)[1]
    lines = [VOLATILE.sub("#", line) for line in re.split(r"[\r\n]", text)]
    log = [line for line in lines if "INFO" in line or "WARNING" in line or "ERROR" in line]
    return tokens, sorted(log)


def test_tokens_and_log_are_those_of_vllm_alone(llama):
    bare_tokens, bare_log = run(llama, VLLM_PLUGINS="")
    tokens, log = run(llama)
    assert tokens == bare_tokens
    new = [line for line in log if line not in bare_log]
    gone = [line for line in bare_log if line not in log]
    # vLLM itself lists the plugins that it finds, and shuts down by the clock.
    new, gone = ([line for line in lines if not NOISE.search(line)] for lines in (new, gone))
    assert not new and not gone, (new, gone)
