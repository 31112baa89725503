"""Sub-layers as operations of torch: what they compute in a step, in its backward pass, and over many steps.

An op has `step`, its forward pass for the rows of one step; `step_backward`, the gradient of its input; and
`accumulate`, which adds the gradients of its parameters over many steps. Only the first two must happen one step after
another.
"""
