"""Every form of metadata, right and damaged, in every container that holds it; and files that say nothing."""

from __future__ import annotations

import json
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examine.provenance import made
from worker.evidence import Evidence, FileMetadata
from worker.examine.provenance.reader import ProvenanceReader

LABEL = '{"Label":"1","ContentProducer":"001191","ProduceID":"x","ReservedCode1":""}'
COMFY_PROMPT = json.dumps({"3": {"inputs": {"seed": 1}, "class_type": "KSampler"}})
COMFY_WORKFLOW = json.dumps({"last_node_id": 9, "last_link_id": 9, "nodes": [{"id": 1}], "links": [[1, 2]]})
INVOKEAI = json.dumps({"generation_mode": "txt2img", "positive_prompt": "a cat", "app_version": "4.2.0"})
UNICODE_A1111 = b"UNICODE\0" + made.A1111.encode("utf-16-be")


@pytest.fixture(scope="module")
def reader():
    return ProvenanceReader(None)


def png_text(*pairs):
    return made.png(*[made.text(keyword, content) for keyword, content in pairs])


def jpeg_exif(fields, comment=None, order=">"):
    return made.encoded("JPEG", exif=b"Exif\0\0" + made.exif(fields, comment, order))


TOOLS = {
    "A1111 in PNG": (png_text(("parameters", made.A1111)), "stable-diffusion-webui"),
    "Forge in PNG": (
        png_text(("parameters", made.A1111.replace("v1.10.1", "f2.0.1v1.10.1"))),
        "stable-diffusion-webui",
    ),
    "A1111 compressed": (made.png(made.compressed_text("parameters", made.A1111.encode())), "stable-diffusion-webui"),
    "A1111 international": (
        made.png(made.international_text("parameters", made.A1111, compressed=True)),
        "stable-diffusion-webui",
    ),
    "A1111 behind the pixels": (
        made.encoded("PNG")[:-12] + made.text("parameters", made.A1111) + made.encoded("PNG")[-12:],
        "stable-diffusion-webui",
    ),
    "A1111 in JPEG": (jpeg_exif({}, UNICODE_A1111), "stable-diffusion-webui"),
    "A1111 in JPEG, Intel": (jpeg_exif({}, UNICODE_A1111, "<"), "stable-diffusion-webui"),
    "A1111 in WebP": (made.encoded("WEBP", exif=made.exif({}, UNICODE_A1111)), "stable-diffusion-webui"),
    "A1111 in AVIF": (made.encoded("AVIF", exif=made.exif({}, UNICODE_A1111)), "stable-diffusion-webui"),
    "A1111 as JPEG comment": (made.encoded("JPEG", comment=made.A1111.encode()), "stable-diffusion-webui"),
    "A1111 as GIF comment": (made.encoded("GIF", comment=made.A1111.encode()), "stable-diffusion-webui"),
    "A1111 in ImageMagick's form": (
        made.png(
            made.compressed_text(
                "Raw profile type exif",
                b"\nexif\n  99\n" + (b"Exif\0\0" + made.exif({}, UNICODE_A1111)).hex().encode() + b"\n",
            )
        ),
        "stable-diffusion-webui",
    ),
    "stable-diffusion.cpp": (
        png_text(("parameters", made.A1111.replace("v1.10.1", "stable-diffusion.cpp"))),
        "stable-diffusion-cpp",
    ),
    "ComfyUI prompt": (png_text(("prompt", COMFY_PROMPT)), "comfyui"),
    "ComfyUI workflow": (png_text(("workflow", COMFY_WORKFLOW)), "comfyui"),
    "ComfyUI in WebP": (
        made.encoded("WEBP", exif=made.exif({0x010F: "workflow:" + COMFY_WORKFLOW, 0x0110: "prompt:" + COMFY_PROMPT})),
        "comfyui",
    ),
    "InvokeAI 3": (png_text(("invokeai_metadata", INVOKEAI)), "invokeai"),
    "InvokeAI 2": (
        png_text(("sd-metadata", json.dumps({"app_id": "invoke-ai/InvokeAI", "image": {"prompt": "x"}}))),
        "invokeai",
    ),
    "InvokeAI 1": (png_text(("Dream", '"a cat" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms')), "invokeai"),
    "NovelAI": (
        png_text(
            ("Title", "NovelAI generated image"),
            ("Software", "NovelAI"),
            ("Source", "NovelAI Diffusion V4 37442FCA"),
            ("Comment", json.dumps({"prompt": "1girl", "request_type": "PromptGenerateRequest", "signed_hash": "x"})),
        ),
        "novelai",
    ),
    "Midjourney in PNG": (
        png_text(("Description", "a cat --v 6.0 Job ID: 9b1f0c2e-0a1b-4c3d-8e9f-001122334455"), ("Author", "someone")),
        "midjourney",
    ),
    "Midjourney in XMP": (
        made.encoded(
            "JPEG",
            xmp=made.xmp(
                "<dc:description><rdf:Alt><rdf:li>a cat --v 6 Job ID: 9b1f0c2e-0a1b-4c3d-8e9f-001122334455</rdf:li>"
                "</rdf:Alt></dc:description>"
            ),
        ),
        "midjourney",
    ),
    "DALL-E": (jpeg_exif({0x0131: "OpenAI DALL·E 3"}), "dall-e"),
    "Firefly": (made.encoded("JPEG", xmp=made.xmp("<xmp:CreatorTool>Adobe Firefly</xmp:CreatorTool>")), "firefly"),
    "FLUX": (jpeg_exif({0x0131: "AI generated;txt2img;flux", 0x010F: "Black Forest Labs"}), "flux"),
    "Google": (
        made.encoded("JPEG", xmp=made.xmp("<photoshop:Credit>Made with Google AI</photoshop:Credit>")),
        "google-ai",
    ),
    "SwarmUI": (png_text(("parameters", json.dumps({"sui_image_params": {"prompt": "x"}}))), "swarmui"),
    "Fooocus": (png_text(("fooocus_scheme", "a1111"), ("parameters", made.A1111)), "fooocus"),
    "MFLUX": (jpeg_exif({}, b"ASCII\0\0\0" + b'{"mflux_version": "0.16"}'), "mflux"),
    "Easy Diffusion": (
        png_text(("prompt", "a cat"), ("seed", "1"), ("use_stable_diffusion_model", "sd-v1-4")),
        "easy-diffusion",
    ),
}


@pytest.mark.parametrize("form", TOOLS)
def test_a_generators_own_fields_name_it(reader, form):
    """By the form that only it writes, or by its name in a field for software."""
    data, slug = TOOLS[form]
    evidence = reader.read(data, made_format(data))
    assert (evidence.metadata.tool, evidence.declared) == (slug, "generated")


@pytest.mark.parametrize("form", TOOLS)
def test_damage_costs_at_most_the_finding(reader, form):
    """Cut off anywhere, nothing is raised, and nothing else is found."""
    data, slug = TOOLS[form]
    for end in range(12, len(data), max(1, len(data) // 40)):
        assert reader.read(data[:end], made_format(data)).metadata.tool in (None, slug)


def made_format(data: bytes) -> str:
    starts = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"II": "tiff"}
    return starts.get(data[:2], "avif")


DAMAGED = [
    png_text(("parameters", "Steps: many, Sampler: none")),
    png_text(("prompt", "a cat in a garden")),
    png_text(("prompt", '{"3": {"inputs"')),
    png_text(("workflow", "my workflow for cats")),
    png_text(("invokeai_metadata", "\ufffd\ufffd")),
    png_text(("Dream", "a dream of a cat")),
    png_text(("sd-metadata", "[]")),
    png_text(("Comment", "shot with NovelAI in mind")),
    png_text(("Description", "a cat Job ID: 12")),
    jpeg_exif({0x0131: "Adobe Photoshop 26.0", 0x013B: "Dalle Müller", 0x010E: "poster of Midjourney and DALL-E"}),
    jpeg_exif({0x0131: "fluxbox", 0x010F: "Comfy"}, b"UNICODE\0\xd8\x00\xd8\x00"),
    jpeg_exif({}, b"Steps"),
    made.png(made.compressed_text("parameters", made.A1111.encode())[:30]),
    made.png(made.chunk(b"zTXt", b"parameters\0\0no zlib")),
    made.png(made.chunk(b"iTXt", b"parameters")),
    made.png(made.chunk(b"tEXt", b"")),
    made.png(made.compressed_text("Raw profile type exif", b"\nexif\n 8\nno hexadecimal")),
    made.encoded("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    made.encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    made.encoded("JPEG", xmp=b"<x:xmpmeta><unclosed"),
    made.encoded("JPEG", xmp=made.xmp("<xmp:CreatorTool>Adobe Photoshop 26.0</xmp:CreatorTool>")),
]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_what_only_looks_like_a_mark_is_none(reader, data):
    """Damaged fields, editors' names, and words of a caption say nothing of the origin."""
    assert reader.read(data, made_format(data)) == Evidence()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_plain_file_has_no_evidence(reader, image_format):
    """In any format."""
    assert reader.read(made.encoded(image_format), image_format.lower()) == Evidence()


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("trainedAlgorithmicMedia", "generated"),
        ("compositeWithTrainedAlgorithmicMedia", "edited"),
        ("digitalCapture", None),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_iptc_source_types_are_read_from_xmp(reader, image_format, name, declared):
    """In each container's own place; a capture that only says so is not believed."""
    packet = made.source_type_xmp(name)
    if image_format == "PNG":
        data = made.png(made.international_text("XML:com.adobe.xmp", packet.decode()))
    elif image_format == "TIFF":
        data = made.encoded("TIFF", tiffinfo={700: packet})
    else:
        data = made.encoded(image_format, xmp=packet)
    evidence = reader.read(data, image_format.lower())
    assert evidence == Evidence(declared=declared, metadata=FileMetadata(source_type=name))


@pytest.mark.parametrize(
    "body",
    [
        '<rdf:Description Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>',
        '<Iptc4xmpExt:DigitalSourceType rdf:resource="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>',
        "<Iptc4xmpExt:DigitalSourceType>trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>",
    ],
)
def test_a_property_counts_in_each_form_of_rdf(reader, body):
    """As an attribute, as a resource, as text."""
    evidence = reader.read(made.encoded("JPEG", xmp=made.xmp(body)), "jpeg")
    assert evidence.metadata.source_type == "trainedAlgorithmicMedia"


@pytest.mark.parametrize(
    "packet",
    [
        b'<!DOCTYPE x [<!ENTITY a "trainedAlgorithmicMedia">]>'
        + made.xmp("<Iptc4xmpExt:DigitalSourceType>&a;</Iptc4xmpExt:DigitalSourceType>"),
        b'<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd">' + made.source_type_xmp("trainedAlgorithmicMedia"),
        made.xmp(
            "<a>" * 5_000
            + "</a>" * 5_000
            + "<Iptc4xmpExt:DigitalSourceType>trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>"
        ),
        made.xmp("<a/>" * 30_000),
    ],
    ids=["entity", "external", "deep", "many"],
)
def test_hostile_xml_says_nothing(reader, packet):
    """Entities, documents from elsewhere, depth and number end the reading of a packet."""
    data = made.png(made.international_text("XML:com.adobe.xmp", packet.decode()))
    assert reader.read(data, "png") == Evidence()


@pytest.mark.parametrize("value", ["1", "2", "3"])
@pytest.mark.parametrize("place", ["xmp", "xmp attribute", "chunk", "exif"])
def test_aigc_labels_are_read_where_they_stand(reader, place, value):
    """Label 1 says generated; possibly and suspected do not."""
    label = LABEL.replace('"1"', f'"{value}"', 1)
    if place == "xmp":
        data = made.encoded("JPEG", xmp=made.xmp(f"<TC260:AIGC>{label}</TC260:AIGC>"))
    elif place == "xmp attribute":
        quoted = label.replace('"', "&quot;")
        data = made.encoded("JPEG", xmp=made.xmp(f'<rdf:Description TC260:AIGC="{quoted}"/>'))
    elif place == "chunk":
        data = png_text(("AIGC", label))
    else:
        data = jpeg_exif({}, b"ASCII\0\0\0" + f'{{"AIGC":{label}}}'.encode())
    evidence = reader.read(data, made_format(data))
    assert evidence.metadata.aigc == value
    assert evidence.declared == ("generated" if value == "1" else None)


@pytest.mark.parametrize(
    "label", ["", "{", "[]", '{"Label": "4"}', '{"Label": {"a": 1}}', '{"AIGC": "{"}', "[" * 100_000]
)
def test_a_damaged_label_is_none(reader, label):
    """Of the three values of the standard, or none."""
    assert reader.read(png_text(("AIGC", label)), "png") == Evidence()


def test_a_compressed_text_that_grows_without_end_is_not_read(reader):
    """A kilobyte that becomes a gigabyte is left alone at a megabyte."""
    bomb = made.compressed_text("parameters", made.A1111.encode() + b"\0" * 50_000_000)
    assert reader.read(made.png(bomb), "png") == Evidence()


REPEATED = {
    "small chunks that become a megabyte each": [made.compressed_text("c", b"a" * 1_000_000)] * 3_000,
    "chunks that become too much": [made.compressed_text("c", b"a" * 1_100_000)] * 3_000,
    "the beginning of a sign, for ever": [made.text("parameters", "Steps: 1, " * 100_000)] * 20,
    "another, for ever": [made.text("Dream", " -s 1" * 200_000)] * 20,
    "labels inside labels": [made.text("AIGC", '{"Label":' * 1_800)] * 64,
    "properties without end": [
        made.international_text("XML:com.adobe.xmp", "<x " + " ".join(f'a{n}="1"' for n in range(80_000)) + "/>")
    ],
}


@pytest.mark.parametrize("name", REPEATED)
def test_repetition_costs_little(reader, name):
    """Processor time of a whole file, far below the time that a decoder has: what was quadratic took minutes."""
    data = made.png(*REPEATED[name])
    started = time.process_time()
    assert reader.read(data, "png") == Evidence()
    assert time.process_time() - started < 2.5


def test_a_text_longer_than_any_limit_is_known_by_its_beginning(reader):
    """A workflow of megabytes is still one of ComfyUI's."""
    data = png_text(("prompt", '{"3": {"class_type": "KSampler", "inputs": "' + "x" * 2_000_000 + '"}}'))
    assert reader.read(data, "png").metadata.tool == "comfyui"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_nothing_that_a_file_holds_is_raised(data):
    """Any bytes of any marked file may be any others."""
    original = data.draw(st.sampled_from([entry[0] for entry in TOOLS.values()] + DAMAGED))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(4, len(changed) - 5))
        changed[at : at + 4] = struct.pack(">I", data.draw(st.integers(0, 2**32 - 1)))
    assert isinstance(_fuzzed.read(bytes(changed), made_format(original)), Evidence)


_fuzzed = ProvenanceReader(None)
