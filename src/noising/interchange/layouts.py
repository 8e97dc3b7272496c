"""The layouts by name, and which one a file's names are of."""

from noising.errors import require
from noising.interchange.diffusers_dit import DiffusersDiT
from noising.interchange.diffusers_unet import DiffusersUNet
from noising.interchange.dit import PublishedDiT
from noising.interchange.edm import EDM
from noising.interchange.edm2 import EDM2
from noising.interchange.jit import JiTLayout
from noising.interchange.layout import Layout, Shapes
from noising.interchange.openai import OpenAI
from noising.interchange.score_sde import ScoreSDE
from noising.interchange.uvit import UViTLayout
from noising.interchange.vdm import VDM

LAYOUTS: dict[str, type[Layout]] = {
    "openai": OpenAI,
    "edm": EDM,
    "edm2": EDM2,
    "diffusers": DiffusersUNet,
    "score_sde": ScoreSDE,
    "dit": PublishedDiT,
    "diffusers_dit": DiffusersDiT,
    "uvit": UViTLayout,
    "jit": JiTLayout,
    "vdm": VDM,
}


def recognized(shapes: Shapes) -> str:
    """The name of the layout of these tensors. Raises ValueError if it is none of those here."""
    found = [name for name, layout in LAYOUTS.items() if layout.recognizes(shapes)]
    some = ", ".join(list(shapes)[:3]) or "none"
    require(len(found) == 1, f"its {len(shapes)} tensors ({some}, ...) are in none of the layouts {', '.join(LAYOUTS)}")
    return found[0]
