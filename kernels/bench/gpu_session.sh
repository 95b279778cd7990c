#!/usr/bin/env bash
# What to run on a borrowed GPU, a stage a call, each within ten minutes.  Nothing blocks the next.
#
#   here:   kernels/bench/gpu_session.sh prepare FOLDER   FOLDER holds build_kit.py, make_model_dir.py
#                                                         and step_time.py; makes .kit, to be carried,
#                                                         with a CPU's answers (minutes)
#   there:  OUT=... kernels/bench/gpu_session.sh install  once: what is carried becomes a vLLM
#                                                tests    of every op
#                                                first    a step of 1 and of 8 canvases
#                                                experts  their times, and of other tiles
#                                                kernels  the times of the other ops
#                                                sweeps   the tables' other configurations
#                                                steps    ours and native at 1, 4, 8, 32 canvases, traces
#                                                host     the same of a model that costs the GPU nothing
#                                                answers  200 prompts, against .kit/cpu_answers.jsonl
#                                                structured  300 structured outputs
#                                                two      steps of the real shape on two GPUs
#                                                long     prompts of 8K to 261K
#                                                serve    vllm bench serve, 1 to 64 users, both
#                                                bf16     steps of the unquantised shape
#
# Everything printed goes to $OUT/STAGE.log, lines to $OUT/*.jsonl; the end of each step is shown.
set -u
stage=${1:?a stage}
cd "$(dirname "$0")/../.."

if [ "$stage" = prepare ]; then
    tools=${2:?the folder with build_kit.py}
    python3 "$tools/build_kit.py" .kit
    cp "$tools/make_model_dir.py" "$tools/step_time.py" .kit/
    cp "$tools/../model/tokenizer_config.json" .kit/
    gunzip -c "$tools/../model/tokenizer.json.gz" | xz -9e >.kit/tokenizer.json.xz
    VLLM_LOGGING_LEVEL=WARNING ${PYTHON:-.venv/bin/python} kernels/bench/answers.py \
        .kit/cpu_answers.jsonl || echo "no CPU answers: the stage answers compares with none"
    du -sh .kit
    exit
fi

out=${OUT:?where results go}
log=$out/$stage.log
begun=$(date +%s)
budget=${BUDGET:-585} # seconds of a call

run() { # run NAME SECONDS COMMAND...: within SECONDS and what is left of the call
    local name=$1 limit=$2 left code
    shift 2
    left=$((budget - $(date +%s) + begun))
    if [ "$left" -lt 15 ]; then
        echo "== $name: no time left" | tee -a "$log"
        return
    fi
    echo "== $name: $*" >>"$log"
    timeout -k 5 $((limit < left ? limit : left)) "$@" >"$out/now.$stage.txt" 2>&1
    code=$?
    cat "$out/now.$stage.txt" >>"$log"
    echo "== $name: exit $code, $(($(date +%s) - begun)) s into the call" | tee -a "$log"
    grep -v '^ *$' "$out/now.$stage.txt" | grep -E 'RESULT|^\{|passed|failed|Error|differ|expected' |
        tail -n 30 | cut -c1-400
    rm -f "$out/now.$stage.txt"
}

# The checkout before what was installed of it: a warm machine may hold an older one.
export PYTHONPATH=$PWD:$PWD/kernels:/tmp/site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0
export VLLM_USE_V2_MODEL_RUNNER=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=WARNING
bench() { # bench OP SECONDS [ARGUMENTS...]
    local op=$1 limit=$2
    shift 2
    run "bench $op $*" "$limit" python3 kernels/bench/run.py "$op" --tested --out "$out/kernels.jsonl" "$@"
}

steps() { # steps NAME SECONDS MODEL [ARGUMENTS...], with VLLM_PLUGINS as it is
    local name=$1 limit=$2 model=$3
    shift 3
    run "steps $name" "$limit" python3 .kit/step_time.py "$model" --json "$out/steps.jsonl" "$@"
}

against=() # a CPU's answers, where there are some
[ -f .kit/cpu_answers.jsonl ] && against=(--against .kit/cpu_answers.jsonl)

case $stage in
install)
    run unpack 60 python3 .kit/unpack.py /tmp/site
    run install 60 python3 -m pip install -q --no-deps --no-build-isolation --target /tmp/site .
    run folders 20 python3 .kit/make_model_dir.py
    cp .kit/tokenizer_config.json /tmp/dg_nvfp4/
    python3 -c 'import lzma, sys; sys.stdout.buffer.write(lzma.open(sys.argv[1]).read())' \
        .kit/tokenizer.json.xz >/tmp/dg_nvfp4/tokenizer.json
    sed 's/"vocab_size": 262144/"vocab_size": 4096/' -i /tmp/dg_tiny/config.json
    ;;
tests)
    # Some at a time: compiling is most of their time.
    run tests 500 sh -c 'ls tests/kernels/test_*.py | grep -v test_compile |
        xargs -P 6 -I{} sh -c "timeout 400 python3 -m pytest -q -x --no-header -p no:cacheprovider {} \
        2>&1 | tail -n 25 | sed s,^,{}:\ ,"'
    ;;
kernels)
    bench attention 80
    bench lm_head 60
    bench soft_mix 60
    for op in norms qkv route moe_sort row_stats row_probs canvas_rows canvas_step; do
        bench $op 30
    done
    ;;
sweeps)
    bench lm_head 100 --sweep
    bench attention 100 --sweep
    bench soft_mix 60 --sweep
    ;;
experts)
    bench moe_gemm 300
    bench moe_gemm 200 --sweep
    ;;
first)
    steps "ours, 1 and 8 canvases" 150 /tmp/dg_nvfp4 --batches 1,8 --trace "$out/trace_first.txt"
    ;;
steps)
    steps "ours, NVFP4" 240 /tmp/dg_nvfp4 --batches 1,4,8,32 --trace "$out/trace_ours.txt" \
        --trace-batch 8
    VLLM_PLUGINS= steps "native, NVFP4" 290 /tmp/dg_nvfp4 --batches 1,4,8,32 \
        --trace "$out/trace_native.txt" --trace-batch 8
    ;;
answers)
    run "answers, 16 at once" 150 python3 kernels/bench/answers.py "$out/answers_16.jsonl" \
        "${against[@]}"
    run "answers, 1 at once" 200 python3 kernels/bench/answers.py "$out/answers_1.jsonl" --batch 1 \
        --against "$out/answers_16.jsonl"
    run "pictures" 100 python3 examples/miniature/evaluate_eyes.py
    VLLM_BATCH_INVARIANT=1 run "answers, invariant, 16 at once" 120 python3 \
        kernels/bench/answers.py "$out/invariant_16.jsonl" "${against[@]}"
    VLLM_BATCH_INVARIANT=1 run "answers, invariant, 1 at once" 150 python3 \
        kernels/bench/answers.py "$out/invariant_1.jsonl" --batch 1 \
        --against "$out/invariant_16.jsonl"
    ;;
host)
    tiny() { # tiny NAME [ARGUMENTS...]
        run "host, $1" 150 python3 examples/benchmark.py /tmp/dg_tiny --random \
            --batches 1,4,8,32 --json "$out/host.jsonl" "${@:2}"
    }
    tiny "ours, async"
    tiny "ours, sync" --kw '{"async_scheduling": false}'
    tiny "native" --native
    ;;
structured)
    run "structured outputs" 300 python3 examples/structured/structured_load.py --batch 16
    run "structured outputs, random weights" 300 python3 examples/structured/structured_load.py \
        --batch 16 --random
    ;;
two)
    run "steps of two ranks" 400 python3 examples/benchmark.py /tmp/dg_nvfp4 --random \
        --batches 1,8 --json "$out/steps.jsonl" --kw '{"tensor_parallel_size": 2}'
    ;;
long)
    long='{"max_model_len": 262144, "gpu_memory_utilization": 0.9}'
    run "long prompts" 560 python3 examples/benchmark.py /tmp/dg_nvfp4 --random --batches 1 \
        --prompt 8192,32768,131072,261000 --json "$out/steps.jsonl" --kw "$long"
    ;;
serve)
    serve() { # serve NAME SECONDS [ARGUMENTS...]
        run "serve, $1" "$2" python3 kernels/bench/serve.py /tmp/dg_nvfp4 --random \
            --json "$out/serve.jsonl" "${@:3}" --max-num-batched-tokens 16384 \
            --limit-mm-per-prompt '{"image": 0, "video": 0}'
    }
    # On a GPU each, where there are two.
    CUDA_VISIBLE_DEVICES=0 serve ours 560 &
    stage=serve_native
    CUDA_VISIBLE_DEVICES=$(($(nvidia-smi -L | wc -l) > 1)) serve native 560 --native &
    wait
    ;;
bf16)
    steps "ours, BF16" 200 /tmp/dg_bf16 --batches 1,8
    VLLM_BATCH_INVARIANT=1 steps "ours, NVFP4, invariant" 200 /tmp/dg_nvfp4 --batches 1,8
    ;;
*)
    echo "no such stage: $stage"
    exit 2
    ;;
esac
ls -la "$out"
