"""The fused walk's steps in one compiled call each, on CPUs that have a compiler."""

from .kernel import applies as applies
from .steps import BackwardSteps as BackwardSteps
from .steps import ForwardSteps as ForwardSteps
