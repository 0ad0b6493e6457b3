"""Choosing the degrees of freedom of PFGM++."""

__all__ = ["suggest_d"]

from genflow.errors import UserError

PUBLISHED = """\
Published: CIFAR-10 (N = 3072, 35 calls): FID 1.92 at D = 128, 1.91 at 2048, 1.98 at inf; with
classes 1.74 at 2048 and 1.79 at inf. FFHQ 64x64 (N = 12288, 79 calls): 2.43 at D = 128, 2.53 at
inf. Two trainings alike may differ by as much. Smaller D was found to bear errors in sampling
better. Source: PFGM++, https://arxiv.org/abs/2302.04265, and its repository."""

MEANING = """
spread: the relative deviation of the length of the noise. It is near that of Gaussian noise
where D is far above N; a large D alone is not enough.
trust: how much the network goes by the sigma that it is told, D/(N + D). The rest it reads off
the state itself, so that it notices when the state is noisier than it should be.
"""


def suggest_d(shape: str = "3,32,32", D: str = "64,128,2048,inf") -> None:
    """Say what the degrees of freedom D of PFGM++ mean for data of a shape.

    Args:
        shape: The shape of a sample, as in 3,32,32.
        D: Degrees of freedom to compare, as in 64,128,inf.
    """

    from genflow.models import Radius

    N = _product(shape)
    laws = [Radius(N, value) for value in _numbers(D)]

    print(f"N = {N} coordinates\n")
    print(f"{'D':>10} {'N/D':>10} {'spread of radius':>18} {'trust in sigma':>16}")

    for law in laws:
        print(f"{law.D:>10g} {N / law.D:>10.3g} {law.spread:>18.2%} {law.trust:>16.2%}")

    low, high = max(1, round(N / 100)), N
    print(MEANING)
    print(f"A sensible range is from N/100 to N, {low} to {high}; smaller for weaker networks.\n")
    print(PUBLISHED)


def _product(shape: str) -> int:
    """The number of coordinates of a shape in text."""

    try:
        sides = [int(part) for part in shape.strip("()[] ").split(",")]
    except ValueError:
        sides = []

    if not sides or min(sides) < 1:
        raise UserError(f"shape is '{shape}': whole numbers of 1 or more are needed, as 3,32,32.")

    total = 1
    for side in sides:
        total *= side
    return total


def _numbers(text: str) -> list[float]:
    """Numbers in text."""

    try:
        return [float(part) for part in text.strip("()[] ").split(",")]
    except ValueError:
        raise UserError(f"D is '{text}': numbers above 0 are needed, as 64,2048,inf.") from None
