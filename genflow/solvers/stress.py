r"""Noise on the state, put there to see how much of it a model bears.

Sampling meets errors that training did not: of the solver, of the network, of arithmetic. A simple
stand-in for all of them is fresh Gaussian noise, in proportion to the noise that the state is
supposed to hold, before every step:

.. math:: x_i \leftarrow x_i + \alpha \, \sigma_{t_i} n_i, \qquad n_i \sim \mathcal N(0, I).

Nothing is told to the network, so for every α above 0 the state is a little noisier than its time
says. A sampler is a table, and this is a column of it: fresh noise of deviation :math:`c_i` that a
step has already (ancestral sampling, churn) becomes :math:`\sqrt{c_i^2 + \alpha^2
\sigma_{t_i}^2}`, and no loop changes. The noise stands before *steps*, not before the calls inside
one: the call that corrects a Heun step sees what the step made of its start. What is *not*
offered: solvers that choose their own steps, whose number the noise would change.

References:
    PFGM++: Unlocking the Potential of Physics-Inspired Generative Models
    https://arxiv.org/abs/2302.04265
"""

__all__ = ["shaken", "shaken_table"]

import copy
from dataclasses import replace
import math

import torch

from genflow.errors import UserError
from genflow.models.paths import Path
from genflow.solvers.samplers import Sampler
from genflow.solvers.tableau import Tableau


def shaken_table(tableau: Tableau, path: Path, alpha: float) -> Tableau:
    r"""A table with noise of deviation :math:`\alpha \sigma_t` before every step.

    Args:
        tableau: The table; a population is shaken before its tables are stacked.
        path: The path that gives σ.
        alpha: α, 0 or more; 0 is the table itself.

    Returns:
        The table, which differs in its noise alone.

    Raises:
        UserError: If α is negative or not finite, or the table is that of a population, or draws
            fresh noise that follows a Student-t path.
    """

    if not (alpha >= 0 and math.isfinite(alpha)):
        raise UserError(
            f"alpha is {alpha}: noise on the state is 0 or more, in units of σ, such as 0.1."
        )
    if tableau.time.ndim > 1:
        raise UserError(
            f"the table is that of {tableau.time.shape[1]} samples with schedules of their own: "
            "shake the tables before they are stacked."
        )
    if alpha == 0:
        return tableau
    if tableau.kick is not None and any(tableau.noisy):
        raise UserError(
            "the table's fresh noise is scaled by κ, as its Student-t path wants it, and noise on "
            "the state is not: take churn 0 or churn_law 'gaussian'."
        )

    begins = tableau.begins or (True,) * len(tableau.time)
    sigma = path(tableau.time)[1] * torch.tensor(begins, dtype=tableau.time.dtype)
    added = torch.cat([alpha * sigma, sigma.new_zeros(1)])  # none after the last stage

    return replace(tableau, noise=torch.hypot(tableau.noise, added), kick=None)


def shaken(sampler: Sampler, alpha: float) -> Sampler:
    r"""A sampler whose state is shaken before every step; the network is shared.

    With one generator a sample, a sample still depends on its own seed alone.

    Args:
        sampler: The sampler.
        alpha: α, 0 or more; with 0 every sample is what it was, bit for bit.

    Returns:
        A sampler like the given one.

    Raises:
        UserError: If α is negative or not finite, or the sampler chooses its own steps.

    Example:
        >>> sampler = shaken(pipe.build(sampler="karras-heun", steps=18), 0.1)
        >>> x = sampler(sampler.init((64, *pipe.shape)), label=label)
    """

    if not isinstance(sampler, Sampler):
        raise UserError(
            f"the sampler is of the class {type(sampler).__name__}, which chooses its own steps: "
            "shake one with fixed steps, such as 'karras-heun'."
        )

    other = copy.copy(sampler)
    other.tableau = shaken_table(sampler.tableau, sampler.denoiser.path, alpha)
    other.tableau.prepare()
    return other
