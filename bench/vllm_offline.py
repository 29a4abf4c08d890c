"""Rows of `serving_vllm.py` that ask vLLM in this process: one feature each, and how many answers are right."""

from __future__ import annotations

import os

from serving_case import NEW_TOKENS, cut, equal


def engine(case, **options):
    from vllm import LLM

    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "block_size": 32, "max_num_seqs": 32}
    extra = {"additional_config": {"corrigenda": str(case.edits)}}
    return LLM(str(case.model), **{**defaults, **extra, **options})


def ask(llm, rows, unended=0, **options):
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": row["prompt"]} for row in rows]
    sampling = SamplingParams(max_tokens=unended or NEW_TOKENS, min_tokens=unended, temperature=0)
    outputs = [list(one.outputs[0].token_ids) for one in llm.generate(prompts, sampling, use_tqdm=False, **options)]
    return outputs if unended else [cut(tokens) for tokens in outputs]


def eager(case):
    """Everything that is on by default: chunked prefill (48 tokens a step) and prefix caching."""
    llm, refer = engine(case, max_num_batched_tokens=48), case.reference
    return {
        "mixed batch, chunks of at most 48 tokens": equal(ask(llm, refer["plain"]), refer["plain"]),
        "64 shared tokens, first time": equal(ask(llm, refer["shared"]), refer["shared"]),
        "64 shared tokens, cached": equal(ask(llm, refer["shared"]), refer["shared"]),
        "first turn, 48 tokens of each answer": equal(ask(llm, refer["first turn"], 48), refer["first turn"]),
        "second turn, over the cached first": equal(ask(llm, refer["second turn"]), refer["second turn"]),
        "one by one": equal([ask(llm, [row])[0] for row in refer["plain"]], refer["plain"]),
    }


def compiled(case):
    llm, refer = engine(case, enforce_eager=False), case.reference
    return {
        "compiled": equal(ask(llm, refer["plain"]), refer["plain"]),
        "compiled, 64 shared tokens, cached": equal([ask(llm, refer["shared"]) for _ in "ab"][1], refer["shared"]),
    }


def preemption(case):
    llm = engine(case, num_gpu_blocks_override=24, disable_log_stats=False)
    rows = case.reference["first turn"]
    answers = ask(llm, rows, 48)
    count = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    return {f"preempted {'and computed anew' if count else 'never'}": {**equal(answers, rows), "preemptions": count}}


def lora(case):
    from vllm.lora.request import LoRARequest

    llm, refer = engine(case, enable_lora=True, max_lora_rank=8), case.reference
    request = LoRARequest("adapter", 1, str(case.work / "lora"))
    return {
        "LoRA enabled, without an adapter": equal(ask(llm, refer["plain"]), refer["plain"]),
        "with an adapter on the edited layer": equal(ask(llm, refer["plain"], lora_request=request), refer["lora"]),
    }


def speculative(case):
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    llm, refer = engine(case, speculative_config=guess), case.reference
    return {"speculative decoding (n-grams)": equal(ask(llm, refer["first turn"], 48), refer["first turn"])}


def transformers_backend(case):
    llm, rows = engine(case, model_impl="transformers"), case.reference["plain"]
    return {"vLLM's transformers backend": equal(ask(llm, rows), rows)}


def tensor_parallel(case):
    """SmolLM2 has 9 heads: three workers."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # a small machine has no NUMA node for each
    llm, rows = engine(case, tensor_parallel_size=3), case.reference["plain"]
    return {"three workers (tensor parallel)": equal(ask(llm, rows), rows)}


def unrouted(case):
    """Unrelated prompts in a batch with edited ones: log-probabilities, bit for bit, and without edits at all."""
    from vllm import SamplingParams

    rows = case.reference["plain"]
    prompts = [{"prompt_token_ids": row["prompt"]} for row in rows]
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, logprobs=5, ignore_eos=True)
    found = []
    for options in ({}, {"additional_config": {}}):
        llm = engine(case, enable_prefix_caching=False, **options)
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        found.append(
            [
                [{token: one.logprob for token, one in step.items()} for step in output.outputs[0].logprobs]
                for output, row in zip(outputs, rows)
                if row["edit"] is None
            ]
        )
        del llm
    with_edits, without = found
    same = sum(a == b for a, b in zip(with_edits, without))
    return {"unrouted: log-probabilities bit-equal to the server without edits": {"equal": same, "of": len(without)}}
