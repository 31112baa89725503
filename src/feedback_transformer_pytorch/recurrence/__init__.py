"""The recurrence: its definition and its fast implementations."""

from .adapters import adapter_settings as adapter_settings
from .applicability import computes_like as computes_like
from .applicability import is_called_plainly as is_called_plainly
from .applicability import without_numbers as without_numbers
from .fused import describe_walk as describe_walk
from .fused import fused as fused
from .incremental import Incremental as Incremental
from .incremental import rounded_weights_reason as rounded_weights_reason
from .layout.rounding import round_linears as round_linears
from .library import walk_as_operator as walk_as_operator
from .native.product import narrow_linear as narrow_linear
from .request import Walked as Walked
from .request import WalkRequest as WalkRequest
from .request import select_rows as select_rows
from .stack import Stack as Stack
from .stepwise import stepwise as stepwise
