from .fused import fused as fused
from .stack import Stack as Stack
from .stepwise import stepwise as stepwise
