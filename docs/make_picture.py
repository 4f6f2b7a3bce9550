"""Draws docs/quickstart.png: one photograph a class, and what the training chain makes of it in five epochs.

Run it from the repository's root after `make install`: .venv/bin/python docs/make_picture.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pipeline.config import load_job
from pipeline.sources import open_source
from workers.chain import compile_chain
from workers.decode import decode

NUM_EPOCHS = 5
TILE, GAP = 96, 6


def main() -> None:
    """Write the picture beside this file."""
    job = load_job(Path("configs/jobs/quickstart.yaml"))
    source = open_source(job.config.sources["photos"], job.path.parent)
    chain = compile_chain(job.train)
    per_class = len(source) // len(source.classes)
    columns = []
    for number in range(len(source.classes)):
        index = number * per_class + 7
        original = decode(source.read(index).data, job.train.decode)
        made = [chain.apply(original, job.config.seed, epoch, offset=index) for epoch in range(NUM_EPOCHS)]
        columns.append([original, *made])
    step = TILE + GAP
    sheet = Image.new("RGB", (len(columns) * step - GAP, (NUM_EPOCHS + 1) * step - GAP + 2 * GAP), "white")
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            tile = _square(Image.fromarray(image)).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (column * step, row * step + (2 * GAP if row else 0)))
    sheet.quantize(256).save(Path(__file__).with_name("quickstart.png"), optimize=True)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


if __name__ == "__main__":
    main()
