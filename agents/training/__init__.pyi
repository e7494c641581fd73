from .base_policies import base_policy as base_policy
from .policy_training import train_policy as train_policy
from .settings import PolicyTraining as PolicyTraining
from .text_corpus import corpus_task as corpus_task
from .text_corpus import read_lines as read_lines
