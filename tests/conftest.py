import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and one worker a core: more threads only spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model that is not there is looked for on the hub, with 20 s of retries without a network
