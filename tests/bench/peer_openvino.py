"""OpenVINO GenAI on a GGUF file, for peer.py: peer_openvino.py MODEL THREADS dense N_PROMPT N_GEN | batch N_SEQS N_GEN | served N_SEQS N_PROMPT N_GEN. Prints one line of JSON: tokens/s."""
import json
import random
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai


def main():
    path, threads, what, *n = sys.argv[1:]
    n = [int(x) for x in n]
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 512
    pipe = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": int(threads)}) if what != "dense" else \
        genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=int(threads), scheduler_config=scheduler)

    def ids(count, seed):
        r = random.Random(seed)
        return ov.Tensor(np.array([[r.randrange(1000, 100000) for _ in range(count)]], dtype=np.int64))

    def config(count):
        c = genai.GenerationConfig()
        c.max_new_tokens, c.ignore_eos, c.do_sample = count, True, False
        return c

    def timed(prompts, count):
        t0 = time.monotonic()
        if what == "dense":
            pipe.generate(prompts[0], config(count))
        else:
            pipe.generate(prompts, [config(count)] * len(prompts))
        return time.monotonic() - t0

    def median(f):
        return sorted(f(i) for i in range(3))[1]

    timed([ids(32, 99)], 8)
    if what == "dense":
        prompt = median(lambda i: timed([ids(n[0], i)], 1))
        gen = median(lambda i: timed([ids(16, i)], n[1] + 1) - timed([ids(16, i + 50)], 1))
        print(json.dumps({f"prompt {n[0]}": n[0] / prompt, f"generate {n[1]}": n[1] / gen}))
    elif what == "batch":
        t = median(lambda i: timed([ids(16, i * 100 + k) for k in range(n[0])], n[1] + 1) - timed([ids(16, 5000 + i * 100 + k) for k in range(n[0])], 1))
        print(json.dumps({"tokens_per_s": n[0] * n[1] / t}))
    else:
        t = median(lambda i: timed([ids(n[1], i * 100 + k) for k in range(n[0])], n[2]))
        print(json.dumps({"tokens_per_s": n[0] * n[2] / t}))


main()
