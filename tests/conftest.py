import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and one worker a core: more threads only spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config):
    # toy rewards of other tests are constant, or follow the length, on purpose
    config.addinivalue_line("filterwarnings", "ignore::textrl_env.reward_watch.RewardWarning")
