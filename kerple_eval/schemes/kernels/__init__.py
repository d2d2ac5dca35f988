"""Conditionally positive definite kernels of distance: as functions, as an algebra, as text, checked.

``algebra`` states the rules; :func:`parse_kernel` reads a formula; :func:`is_cpd` and :func:`is_pd`
look at eigenvalues; :func:`log_kernel` and :func:`power_kernel` are the paper's two.
"""

from kerple_eval.schemes.kernels.algebra import CPD, PD, add, constant, exp, log, power, product, root, scaled
from kerple_eval.schemes.kernels.basic import log_kernel, power_kernel
from kerple_eval.schemes.kernels.numeric import (
    Kernel,
    NoOffsetError,
    is_cpd,
    is_pd,
    kernel_matrix,
    pd_offset,
    smallest_eigenvalue,
)
from kerple_eval.schemes.kernels.parameters import ClosureError, Parameter, Range, Scale
from kerple_eval.schemes.kernels.parsing import parse_kernel

__all__ = [
    "CPD",
    "PD",
    "ClosureError",
    "Kernel",
    "NoOffsetError",
    "Parameter",
    "Range",
    "Scale",
    "add",
    "constant",
    "exp",
    "is_cpd",
    "is_pd",
    "kernel_matrix",
    "log",
    "log_kernel",
    "parse_kernel",
    "pd_offset",
    "power",
    "power_kernel",
    "product",
    "root",
    "scaled",
    "smallest_eigenvalue",
]
