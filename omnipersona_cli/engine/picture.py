"""What is made, and what is said about it inside the file.

A picture carries how it was made (prompt, rewritten prompt, seed, backend, hashes of the packs) as
JSON in a PNG text chunk, and the IPTC mark of a generated picture (DigitalSourceType) as XMP.
Under ``minimal`` only the mark and the program are written, under ``none`` nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from omnipersona_cli import __version__
from omnipersona_cli.concepts.container import place_file
from omnipersona_cli.data.about import CHUNK
from omnipersona_cli.engine.replay import Trace

Metadata = Literal["full", "minimal", "none"]

GENERATED = "trainedAlgorithmicMedia"
EDITED = "compositeWithTrainedAlgorithmicMedia"
"""Terms of IPTC's vocabulary for DigitalSourceType: painted whole, painted into a picture."""

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{source}"
    xmp:CreatorTool="omnipersona {version}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture and how it was made. ``about`` is what the file's JSON says, of plain values;
    ``region`` (mode L, white = may have changed) is the region that an edit was held to."""

    image: Image
    seed: int
    trace: Trace
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = GENERATED
    region: Image | None = None


def png_bytes(picture: Picture, *, metadata: Metadata = "full") -> bytes:
    """The PNG file. Equal pictures give equal bytes."""
    info = PngInfo()
    if metadata != "none":
        info.add_text("Software", f"omnipersona {__version__}")
        mark = _XMP.format(source=picture.source, version=__version__)
        info.add_itxt("XML:com.adobe.xmp", mark)
    if metadata == "full":
        text = json.dumps(dict(picture.about), ensure_ascii=True, sort_keys=True)
        info.add_itxt(CHUNK, text)
    buffer = BytesIO()
    picture.image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(
    picture: Picture, path: Path, *, metadata: Metadata = "full", force: bool = False
) -> Path:
    """Write the PNG file, whole or not at all; never over a file that is there, but by ``force``,
    and then in its place in one step.

    Raises TakenError for a path that is taken, ResourceError for one that cannot be written.
    """
    place_file(path, png_bytes(picture, metadata=metadata), force=force)
    return path
