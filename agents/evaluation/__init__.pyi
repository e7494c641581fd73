from .exact_optimum import optimality_gap as optimality_gap
from .policy_texts import WrittenTexts as WrittenTexts
from .policy_texts import make_policy as make_policy
from .policy_texts import write_texts as write_texts
