"""Pictures, drawn without a display and written complete or not at all.

A `matplotlib.figure.Figure` made without pyplot needs no backend, so the caller's stays as it is.
"""

from pathlib import Path

from matplotlib.figure import Figure

from pretraining.files import replacing


def save_picture(figure: Figure, picture: Path) -> None:
    """Writes a figure as a PNG file."""
    figure.tight_layout()
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
