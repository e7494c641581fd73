from .reference_kl_wrappers import ReferenceKL as ReferenceKL
from .reference_kl_wrappers import ReferenceKLVecEnv as ReferenceKLVecEnv
from .reference_kl_wrappers import ReferenceKLVector as ReferenceKLVector
from .rollout_samples import RolloutResult as RolloutResult
