"""The fused walk's steps in one compiled call each, on CPUs that have a compiler."""
