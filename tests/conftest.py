import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and one worker a core: more threads only spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
