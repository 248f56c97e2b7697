"""How far fields have moved."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from models.plots.canvas import FRAUD, LEGIT, MARK, canvas


def severities(found: Sequence[tuple[str, float]]) -> Figure:
    """Plot how far each field has moved, as a multiple of the limit.

    Args:
        found: field and severity, the farthest first.

    Example:
        >>> severities([("amount", 3.2), ("country", 0.2)]).axes[0].get_xlabel()
        'severity (above 1: moved)'
    """
    figure, axes = canvas("severity (above 1: moved)", "")
    names, heights = [name for name, _ in found][::-1], [height for _, height in found][::-1]
    axes.barh(names, heights, color=[FRAUD if height > 1 else LEGIT for height in heights])
    axes.axvline(1.0, color=MARK, linestyle="--", linewidth=1.2)
    axes.set(title="How far fields have moved")
    return figure
