"""Pictures, drawn without a display and written complete or not at all.

A `matplotlib.figure.Figure` made without pyplot needs no backend, so the caller's stays as it is.
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from pretraining.files import replacing

# Families that have Chinese, on Linux, macOS and Windows.
_CHINESE = (
    "Noto Sans CJK",
    "Source Han Sans",
    "WenQuanYi",
    "PingFang",
    "Microsoft YaHei",
    "SimHei",
)


def save_picture(figure: Figure, picture: Path) -> None:
    """Writes a figure as a PNG file; Chinese in it needs a font of the machine."""
    installed = {font.name for font in fontManager.ttflist}
    chinese = [name for name in sorted(installed) if name.startswith(_CHINESE)]
    for text in figure.findobj(Text):
        text.set_fontfamily([*text.get_fontfamily(), *chinese])
    figure.tight_layout()
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
