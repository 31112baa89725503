from .request import Walked as Walked
from .request import WalkRequest as WalkRequest
from .stack import Stack as Stack
from .stepwise import stepwise as stepwise
def fused(stack, request, recompute=False): return stepwise(stack, request)
def describe_walk(*a): ...
class Incremental: ...
computes_like=is_called_plainly=None
