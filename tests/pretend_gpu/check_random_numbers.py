"""Random numbers of the device: saved, restored, drawn without double precision; and numbers of agents that lie there."""

import copy

import numpy as np
import pytest
import torch

from agents import TextPPO
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.models.loading import frozen, load_lm
from agents.models.sampler import draw
from agents.rollouts import ReferenceKLVecEnv
from agents.rollouts.reference_model import as_reference
from rewards.utils.devices import generator_state, has_float64, seeded
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..agents.conftest import LLAMA, VOCAB, sevens
from .check_commands import Single

# the pretend device's own: operators are given an output of no size to fill
pytestmark = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")


def task(**more):
    return TextTask(IntegerTokenizer(VOCAB), [Prompt("1 2"), Prompt("3")], max_new_tokens=5, **more)


def env(rows=4):
    return TextGenerationVecEnv(rows, task(), reward=sevens)


def agent(device):
    return TextPPO("TransformerPolicy", env(), n_episodes=8, batch_size=4, policy_kwargs={"model": LLAMA}, seed=0, device=device)


def weights(made):
    return {name: value.cpu() for name, value in made.policy.state_dict().items()}


def test_a_run_that_goes_on_draws_as_one_that_was_never_saved(pretend_gpu, tmp_path):
    whole = agent("pretend")
    whole.learn(60)
    torch.rand(7, device=pretend_gpu)  # whoever draws in between
    whole.save(tmp_path / "half.zip")
    whole.learn(60, reset_num_timesteps=False)
    resumed = TextPPO.load(tmp_path / "half.zip", env(), device="pretend")
    torch.manual_seed(99)
    resumed.learn(60, reset_num_timesteps=False)
    wanted = weights(whole)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(resumed).items())


def test_a_run_that_goes_on_elsewhere_says_so(pretend_gpu, tmp_path):
    made = agent("pretend")
    made.learn(40)
    made.save(tmp_path / "half.zip")
    on_cpu = TextPPO.load(tmp_path / "half.zip", env(), device="cpu")
    with pytest.warns(UserWarning, match="saved on pretend and goes on on cpu"):
        on_cpu.learn(40, reset_num_timesteps=False)
    older = TextPPO.load(tmp_path / "half.zip", env(), device="cpu")
    older.resume_state = {**older.resume_state, "cuda": []}
    del older.resume_state["device"]  # as versions before this one saved
    older.learn(40, reset_num_timesteps=False)


def test_writing_leaves_the_generators_as_they_were_and_moves_the_reference(pretend_gpu):
    ordered = task(prompt_order="sequential")
    with seeded(0):
        on_cpu = make_policy(ordered, LLAMA, "cpu")
    policy, reference = copy.deepcopy(on_cpu).to(pretend_gpu), frozen(copy.deepcopy(on_cpu.lm))
    before = generator_state(pretend_gpu), torch.get_rng_state()
    texts = write_texts(policy, ordered, 6, sevens, reference, seed=3)
    assert torch.equal(before[0], generator_state(pretend_gpu)) and torch.equal(before[1], torch.get_rng_state())
    assert next(reference.parameters()).device.type == "pretend"
    assert texts.kl_per_sequence == pytest.approx(0, abs=1e-5)  # of the policy itself
    assert write_texts(policy, ordered, 6, sevens, seed=3).responses == texts.responses
    assert write_texts(on_cpu, ordered, 6, sevens, seed=3).responses == texts.responses  # it computes as the CPU does
    with pytest.raises(ValueError, match="the reference's model is on cpu, and the texts are read on pretend"):
        write_texts(policy, ordered, 6, sevens, on_cpu.backbone)


def test_draws_without_double_precision(pretend_gpu):
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7], device=pretend_gpu).log().expand(4000, 4)  # (4000, 4)
    has_float64.cache_clear()
    with Single(), seeded(0, pretend_gpu):
        assert not has_float64(pretend_gpu)
        drawn = draw(logits).cpu().numpy()
    has_float64.cache_clear()
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.0, 0.7], atol=4 * np.sqrt(0.21 / 4000))
    assert shares[2] == 0


def test_log_probabilities_may_lie_on_the_device(pretend_gpu):
    found, lm = [], frozen(load_lm(LLAMA))
    for device in ("cpu", pretend_gpu):
        wrapped = ReferenceKLVecEnv(env(2), lm.to(device), beta=0.5)
        for own in (None, torch.tensor([-1.0, -2.0], device=device, requires_grad=True)):
            wrapped.seed(0)
            wrapped.reset()
            wrapped.log_probs = own
            found.append(wrapped.step(np.array([5, 6]))[1])
    np.testing.assert_allclose(found[2:], found[:2], rtol=1e-6)
    np.testing.assert_allclose(found[3] - found[2], [0.5, 1.0], rtol=1e-6)


def test_a_reference_that_is_loaded_goes_where_texts_are_read(pretend_gpu):
    space = env().observation_space
    assert as_reference(LLAMA, space, VOCAB, pretend_gpu).device == pretend_gpu
    assert as_reference(frozen(load_lm(LLAMA)), space, VOCAB).device.type == "cpu"  # a module stays where it is, if nobody says more
