"""The constructors: names and defaults as they are documented, wrong names refused, types known to mypy."""

import inspect
from pathlib import Path
from typing import ClassVar

import pytest
import stable_baselines3

import agents
from agents import RLOO, TextPPO
from agents.algorithms.common.policy_gradient_arguments import PolicyGradientArguments
from textrl_env import IntegerTokenizer

from ..conftest import LLAMA, VOCAB

ALL = {
    "gae_lambda_critic": None, "gae_alpha": None,
    "learning_rate": 3e-4, "n_episodes": 64, "gamma": 1.0, "gae_lambda": 0.95, "beta": 0.05, "reference": None, "reference_mixup": 0.0,
    "shard": False,
    "rollout_buffer_kwargs": None, "stats_window_size": 100, "tensorboard_log": None, "policy_kwargs": None, "verbose": 0, "seed": None,
    "device": "auto", "_init_setup_model": True,
}  # fmt: skip
CRITIC = {"ent_coef": 0.0, "vf_coef": 0.1, "max_grad_norm": 1.0, "critic_warmup": 0}
PPO = {**ALL, **CRITIC, "batch_size": 16, "n_epochs": 4, "clip_range": 0.2, "clip_range_vf": None, "target_kl": None}
POLICY_GRADIENT = {
    **PPO, "batch_size": 64, "n_epochs": 1, "estimator": "rloo", "group_size": 4, "clip_range_high": None, "dual_clip": None,
    "loss_aggregation": "token", "skip_equal_groups": False, "max_sampling_rounds": 1, "whiten_advantages": False, "kl_in": "reward",
    "kl_estimator": "k1", "ptx_coef": 0.0, "ptx_texts": (), "surrogate": "ppo", "cov_share": 2e-4, "cov_low": 1.0, "cov_high": 5.0,
    "kl_cov_coef": 1.0, "off_policy_mask": None, "overlong_filtering": False, "entropy_target": None, "ent_coef_step": 0.005,
    "ent_coef_max": 1.0,
}  # fmt: skip
EXPECTED = {
    "OnlineDPO": {
        **ALL, "batch_size": 64, "n_epochs": 1, "max_grad_norm": 1.0, "loss": "sigmoid", "label_smoothing": 0.0, "judge": None,
    },
    "TextPPO": PPO,
    "TextMaskablePPO": PPO,
    "NLPO": {**PPO, "mask_top_p": 0.9, "mask_refresh": 10},
    "TextA2C": {**ALL, **CRITIC, "learning_rate": 1e-3, "whiten_advantages": True},
    "TextTRPO": {
        **ALL, "learning_rate": 1e-3, "batch_size": 16, "cg_max_steps": 15, "cg_damping": 0.1, "line_search_shrinking_factor": 0.8,
        "line_search_max_iter": 10, "n_critic_updates": 10, "target_kl": 0.01, "whiten_advantages": True,
    },
    "TextPolicyGradient": POLICY_GRADIENT,
    "RLOO": POLICY_GRADIENT,
    "Reinforce": {**POLICY_GRADIENT, "estimator": "reinforce"},
    "ReinforcePlusPlus": {**POLICY_GRADIENT, "estimator": "reinforce++", "n_epochs": 2},
    "GRPO": {
        **POLICY_GRADIENT, "estimator": "grpo", "n_epochs": 2, "loss_aggregation": "sequence", "beta": 0.04, "kl_in": "loss",
        "kl_estimator": "k3",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_names_and_defaults(name):
    policy, env, *others = inspect.signature(getattr(agents, name)).parameters.values()
    assert [policy.name, env.name, policy.default, env.default] == ["policy", "env", inspect.Parameter.empty, inspect.Parameter.empty]
    assert {one.name: one.default for one in others} == EXPECTED[name]


PASSES = {"lora": None, "precision": "float32", "micro_batch_size": 0, "gradient_checkpointing": False, "shard": False}
FIXED_TEXTS = {
    "SFT": {
        "learning_rate": 3e-3, "batch_size": 32, "weight_decay": 0.01, "max_new_tokens": None, "train_on_prompts": True, "seed": 0,
        "device": "auto", **PASSES,
    },
    "DPO": {
        "beta": None, "loss": "sigmoid", "label_smoothing": 0.0, "gamma": None, "reference": None, "max_new_tokens": None,
        "learning_rate": 1e-4, "batch_size": 16, "weight_decay": 0.0, "seed": 0, "device": "auto", **PASSES,
    },
    "KTO": {
        "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "reference": None, "max_new_tokens": None, "learning_rate": 1e-4,
        "batch_size": 32, "weight_decay": 0.0, "seed": 0, "device": "auto", **PASSES,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED_TEXTS)
def test_training_on_fixed_texts(name):
    algorithm = getattr(agents, name)
    model, tokenizer, *others = inspect.signature(algorithm).parameters.values()
    assert (model.name, tokenizer.name) == ("model", "tokenizer")
    assert {one.name: one.default for one in others} == FIXED_TEXTS[name]
    doc = inspect.getdoc(algorithm)
    assert all(doc.count(f"\n    {argument}: ") == 1 for argument in ("model", "tokenizer", *FIXED_TEXTS[name]))
    with pytest.raises(TypeError, match=rf"^{name} takes no argument 'learning_rat' \(did you mean 'learning_rate'\?\); it takes model, "):
        algorithm(LLAMA, IntegerTokenizer(VOCAB, 0), learning_rat=1e-3)
    trainer = algorithm(LLAMA, IntegerTokenizer(VOCAB, 0), seed=3)
    for argument in ("learning_rate", "batch_size", "weight_decay"):
        assert getattr(trainer, argument) == FIXED_TEXTS[name][argument]
    assert trainer.seed == 3


@pytest.mark.parametrize("name", EXPECTED)
def test_the_documentation_describes_every_argument_once(name):
    doc = inspect.getdoc(getattr(agents, name))
    for argument, default in EXPECTED[name].items():
        assert doc.count(f"\n    {argument}: ") == 1
        assert argument.startswith("mask_") or f"Default: {default!r}." in " ".join(doc.split(f"\n    {argument}: ")[1].split())
    assert doc.count("\nArgs:\n") == 1 and "\n    policy: " in doc and "\n    env: " in doc


def test_the_documentation_says_what_differs_from_the_library():
    library = inspect.signature(stable_baselines3.PPO).parameters
    doc = inspect.getdoc(TextPPO)
    for name, default in PPO.items():
        if name in library and library[name].default != default:
            assert "SB3" in doc.split(f"\n    {name}: ")[1].split("  Default: ")[0], name


@pytest.mark.parametrize("name", EXPECTED)
def test_a_wrong_name_is_refused(name, make_env):
    algorithm = getattr(agents, name)
    with pytest.raises(TypeError) as raised:
        algorithm("TransformerPolicy", make_env(), n_episode=8)
    message = str(raised.value)
    assert message.startswith(f"{name} takes no argument 'n_episode' (did you mean 'n_episodes'?); it takes policy, env, ")
    assert set(message.partition("it takes ")[2].split(", ")) == {"policy", "env", *EXPECTED[name]} - {"_init_setup_model"}
    with pytest.raises(TypeError, match=r"^\w+ takes no argument 'n_steps'"):  # of SB3's, and not of ours
        algorithm("TransformerPolicy", make_env(), n_steps=8)


class Shifted(RLOO):
    """Own arguments in the constructor.

    Args:
        shift: Of the reward.
    """

    _defaults: ClassVar[PolicyGradientArguments] = {"n_epochs": 3, "beta": 0.1}

    def __init__(self, policy, env, shift=0.5, **arguments):
        super().__init__(policy, env, **arguments)
        self.shift = shift


class Closed(TextPPO):
    """No other arguments."""

    def __init__(self, policy, env, n_episodes=8):
        super().__init__(policy, env, n_episodes=n_episodes, batch_size=4, policy_kwargs={"model": LLAMA})


def test_an_algorithm_of_ones_own(make_env):
    env = make_env()
    shifted = Shifted("TransformerPolicy", env, n_episodes=8, estimator="reinforce", policy_kwargs={"model": LLAMA})
    assert (shifted.shift, shifted.n_episodes, shifted.n_epochs, shifted.batch_size) == (0.5, 8, 3, 64)
    assert shifted.kl_controller.beta == 0.1 and "Default: 0.1." in inspect.getdoc(Shifted).split("\n    beta: ")[1]
    parameters = inspect.signature(Shifted).parameters
    assert list(parameters)[:3] == ["policy", "env", "shift"] and set(parameters) == {"policy", "env", "shift", *POLICY_GRADIENT}
    assert inspect.getdoc(Shifted).count("    shift: Of the reward.") == 1 and "    n_epochs: " in inspect.getdoc(Shifted)
    with pytest.raises(TypeError, match=r"Shifted takes no argument 'shif' \(did you mean 'shift'\?\)"):
        Shifted("TransformerPolicy", env, shif=1)
    assert Closed("TransformerPolicy", env).n_episodes == 8
    assert list(inspect.signature(Closed).parameters) == ["policy", "env", "n_episodes"]


def test_mypy_knows_names_and_types(tmp_path):
    mypy = pytest.importorskip("mypy.api", reason="mypy is not installed")
    (tmp_path / "snippet.py").write_text(
        """from agents import GRPO, NLPO, RLOO, TextA2C, TextPPO, TextTRPO
TextPPO("TransformerPolicy", "textrl/Review-v0", n_episodes=8, learning_rate=lambda left: 1e-3 * left, beta={"beta": 0.1})
NLPO("TransformerPolicy", "textrl/Review-v0", mask_top_p=0.8, n_episodes=8)
TextPPO("TransformerPolicy", "textrl/Review-v0", n_episode=8)
TextA2C("TransformerPolicy", "textrl/Review-v0", batch_size=8)
NLPO("TransformerPolicy", "textrl/Review-v0", n_episodes="8")
GRPO("TransformerPolicy", "textrl/Review-v0", kl_in="rewards")
RLOO("TransformerPolicy", "textrl/Review-v0", n_epoch=1)
TextTRPO("TransformerPolicy", "textrl/Review-v0", target_kl=None)
"""
    )
    folder = Path(agents.__file__).parent
    ours = [
        folder / "__init__.pyi",
        folder / "utils" / "limits.py",
        *(folder / "algorithms").glob("*.py"),
        *(folder / "algorithms" / "common").glob("*.py"),
    ]
    # Only these files are read, which takes seconds; with torch and the like it would be a minute
    command = ["--config-file=", "--follow-imports=skip", f"--cache-dir={tmp_path}", str(tmp_path / "snippet.py"), *map(str, ours)]
    report, _, _ = mypy.run(command)
    errors = [line.partition("snippet.py:")[2] for line in report.splitlines() if "snippet.py:" in line and ": error: " in line]
    assert [int(error.partition(":")[0]) for error in errors] == [4, 5, 6, 7, 8, 9]
    assert 'Unexpected keyword argument "n_episode" for "TextPPO"; did you mean "n_episodes"?' in errors[0]
    assert "expected \"Literal['reward', 'loss']\"" in errors[3]
