"""Which font files the rendered lines are set in, and where the installed packages keep them.

Promises: only packages from PyPI, so the same files lie on every machine; a package's folder is found without
importing it. Raises `MissingFontError` with the pip command when one is absent. Called by `lines` and `layout`.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path


class MissingFontError(RuntimeError):
    """A font package that the rendered lines need is not installed."""


@dataclass(frozen=True, slots=True)
class Family:
    distribution: str  # the name pip knows, for the message
    module: str  # the folder in site-packages
    folder: str  # where the files lie in it
    files: tuple[str, ...]

    def paths(self) -> list[Path]:
        found = importlib.util.find_spec(self.module)
        roots = list(found.submodule_search_locations or ()) if found else []
        if not roots:
            raise MissingFontError(
                f"fonts of {self.distribution!r} are not installed; fix: pip install {self.distribution}"
            )
        paths = [Path(roots[0]) / self.folder / name for name in self.files]
        for path in paths:
            if not path.is_file():
                raise MissingFontError(
                    f"{self.distribution!r} has no {path.name}; fix: pip install -U {self.distribution}"
                )
        return paths


# Faces a book, a letter, an invoice or a web page is set in.
PRINT: tuple[Family, ...] = (
    Family(
        "matplotlib",
        "matplotlib",
        "mpl-data/fonts/ttf",
        (
            "DejaVuSans.ttf",
            "DejaVuSans-Bold.ttf",
            "DejaVuSans-Oblique.ttf",
            "DejaVuSansMono.ttf",
            "DejaVuSansMono-Bold.ttf",
            "DejaVuSerif.ttf",
            "DejaVuSerif-Bold.ttf",
            "DejaVuSerif-Italic.ttf",
            "STIXGeneral.ttf",
            "STIXGeneralBol.ttf",
            "STIXGeneralItalic.ttf",
            "STIXGeneralBolIta.ttf",
        ),
    ),
    Family(
        "font-roboto",
        "font_roboto",
        "files",
        ("Roboto-Light.ttf", "Roboto-Regular.ttf", "Roboto-Italic.ttf", "Roboto-Medium.ttf", "Roboto-Bold.ttf"),
    ),
    Family(
        "font-source-sans-pro",
        "font_source_sans_pro",
        "files",
        ("SourceSansPro-Light.ttf", "SourceSansPro-Regular.ttf", "SourceSansPro-It.ttf", "SourceSansPro-Bold.ttf"),
    ),
    Family(
        "font-source-serif-pro",
        "font_source_serif_pro",
        "files",
        ("SourceSerifPro-Light.ttf", "SourceSerifPro-Regular.ttf", "SourceSerifPro-It.ttf", "SourceSerifPro-Bold.ttf"),
    ),
    Family(
        "font-caladea",
        "font_caladea",
        "files",
        ("Caladea-Regular.ttf", "Caladea-Italic.ttf", "Caladea-Bold.ttf", "Caladea-BoldItalic.ttf"),
    ),
    Family("font-manrope", "font_manrope", "files", ("Manrope-Light.ttf", "Manrope-Regular.ttf", "Manrope-Bold.ttf")),
    Family("font-lato", "font_lato", "files", ("Lato-Regular.ttf", "Lato-Italic.ttf", "Lato-Bold.ttf")),
    Family(
        "font-hanken-grotesk",
        "font_hanken_grotesk",
        "files",
        ("HankenGrotesk-Regular.otf", "HankenGrotesk-Italic.otf", "HankenGrotesk-Bold.otf"),
    ),
)

# Thin, heavy, condensed and drawn faces: signs, posters, packaging.
DISPLAY: tuple[Family, ...] = (
    Family("font-fjallaone", "font_fjallaone", "files", ("FjallaOne-Regular.ttf",)),
    Family("font-fredoka-one", "font_fredoka_one", "files", ("FredokaOne-Regular.ttf",)),
    Family("font-amatic-sc", "font_amatic_sc", "files", ("AmaticSC-Bold.ttf",)),
    Family("font-roboto", "font_roboto", "files", ("Roboto-Thin.ttf", "Roboto-BlackItalic.ttf")),
    Family("font-lato", "font_lato", "files", ("Lato-Thin.ttf", "Lato-Black.ttf")),
)


# Faces of whole pages. None of them is among the above: what an engine was calibrated with and judged by is not here.
PAGES: tuple[Family, ...] = (
    Family(
        "font-hanken-grotesk",
        "font_hanken_grotesk",
        "files",
        ("HankenGrotesk-Medium.otf", "HankenGrotesk-SemiBold.otf", "HankenGrotesk-MediumItalic.otf"),
    ),
    Family("font-manrope", "font_manrope", "files", ("Manrope-Medium.ttf", "Manrope-SemiBold.ttf")),
    Family("font-lato", "font_lato", "files", ("Lato-Light.ttf", "Lato-BoldItalic.ttf", "Lato-LightItalic.ttf")),
    Family(
        "font-roboto",
        "font_roboto",
        "files",
        ("Roboto-MediumItalic.ttf", "Roboto-LightItalic.ttf", "Roboto-Black.ttf"),
    ),
    Family(
        "font-source-sans-pro",
        "font_source_sans_pro",
        "files",
        ("SourceSansPro-Semibold.ttf", "SourceSansPro-LightIt.ttf", "SourceSansPro-SemiboldIt.ttf"),
    ),
    Family(
        "font-source-serif-pro",
        "font_source_serif_pro",
        "files",
        ("SourceSerifPro-Semibold.ttf", "SourceSerifPro-LightIt.ttf", "SourceSerifPro-SemiboldIt.ttf"),
    ),
    Family(
        "matplotlib",
        "matplotlib",
        "mpl-data/fonts/ttf",
        ("DejaVuSerif-BoldItalic.ttf", "DejaVuSans-BoldOblique.ttf", "DejaVuSansMono-Oblique.ttf"),
    ),
)


def paths_of(families: tuple[Family, ...]) -> list[Path]:
    return [path for family in families for path in family.paths()]
