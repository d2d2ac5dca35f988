"""The pictures of the documentation that come from results/, made small: `make pictures`.

256 colours or fewer and at most 60 kB each; what is drawn is untouched.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "results"
MOST = 60_000  # bytes

#: Picture -> where it comes from.
PICTURES = {
    "curve": "demo/curve.png",
    "position": "demo/position.png",
    "ratio": "zoo/ratio.png",
    "kernels": "zoo-kernels/kernels.png",
    "kernel-reach": "zoo-kernels/kernel-reach.png",
    "matrix": "zoo-kernels/matrix.png",
    "depth": "smollm2/told.png",
}


def shrunk(source: Path) -> bytes:
    """The widest palette image of at most ``MOST`` bytes."""
    picture = Image.open(source).convert("RGB")
    for width in (1400, 1200, 1000, 900, 800, 700, 600):
        for colours in (64, 32):
            size = (
                min(width, picture.width),
                round(picture.height * min(width, picture.width) / picture.width),
            )
            buffer = io.BytesIO()
            small = picture.resize(size, Image.Resampling.LANCZOS)
            small.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            if buffer.tell() <= MOST:
                return buffer.getvalue()
    raise ValueError(f"{source}: over {MOST} bytes at 600 pixels")


if __name__ == "__main__":
    for name, source in PICTURES.items():
        (FOLDER / f"{name}.png").write_bytes(shrunk(RESULTS / source))
