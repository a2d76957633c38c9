"""Pictures, drawn without a display and written complete or not at all."""

import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

matplotlib.use("Agg")


def save_picture(figure: Figure, picture: Path) -> None:
    """Writes a figure as a PNG file and closes it."""
    figure.tight_layout()
    temporary = picture.with_name(f".{picture.name}")
    figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    os.replace(temporary, picture)
