from .label_consensus import agreement as agreement
from .label_consensus import consensus as consensus
from .label_consensus import estimate as estimate
