#!/bin/sh
# Pillow turns a TIFF upright by itself, and no other format. A TIFF of 6 x 4 pixels with orientation 6 (turn by 90
# degrees) has, as Pillow 13.0.0 opens it, the size 4 x 6 already, while its EXIF still says orientation 6, until it is
# loaded. A reader of headers that exchanges the sides of whatever has orientation 5 to 8 is right for JPEG, PNG and WebP
# and wrong for TIFF: crops and resizes planned from that size are of another shape. Pillow 10.1.0 exchanges a TIFF's
# sides only when it is loaded: there the same code was right.
#
# Seen with Pillow 10.1.0 and 13.0.0, CPython 3.11, per format: size and orientation at open, then after load()
#   10.1.0 TIFF (6, 4) 6 -> (4, 6) None    JPEG, PNG, WEBP (6, 4) 6 -> (6, 4) 6
#   13.0.0 TIFF (4, 6) 6 -> (4, 6) None    JPEG, PNG, WEBP (6, 4) 6 -> (6, 4) 6
# Exits with 1 if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 10.1.0 13.0.0; do
    "$folder/venv/bin/pip" install --quiet --only-binary :all: "pillow==$version"
    "$folder/venv/bin/python" - "$version" <<'END'
import io
import sys

from PIL import Image, __version__

assert __version__ == sys.argv[1]
turned = (6, 4) if __version__ == "10.1.0" else (4, 6)
seen = {form: ((6, 4), 6, (6, 4), 6) for form in ("JPEG", "PNG", "WEBP")} | {"TIFF": (turned, 6, (4, 6), None)}
same = True
for form, expected in seen.items():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4), 128).save(file, form, exif=exif)
    image = Image.open(io.BytesIO(file.getvalue()))
    found = image.size, image.getexif().get(0x0112)
    image.load()
    found += image.size, image.getexif().get(0x0112)
    print(__version__, form, *found)
    same &= found == expected
sys.exit(not same)
END
done
