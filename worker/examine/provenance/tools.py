"""Which generator's own fields a file has: its slug, or none. The slugs are listed in docs/evidence.md.

Two kinds of sign: the form of a field that only this generator writes (`FORMS`), and its name in a field that names
software (`NAMES`). A prompt or a caption is never searched for names: whoever photographs a poster of Midjourney has
generated nothing. Editors (Photoshop, GIMP) and cameras are no generators and have no slug.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from worker.examine.provenance import exif

# Beginning and end of a long field say whose it is; a pattern never runs over more.
_LOOKED_AT_CHARS = 1 << 16

_STEPS = re.compile(r"\bSteps: \d+, ")
_SAMPLING = re.compile(r"\b(?:Sampler|CFG scale|Seed): ")
_MIDJOURNEY_JOB = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_DREAM_STEPS = re.compile(r"\s-s\s?\d+\b")
_DREAM_SIZE = re.compile(r"\s-[WS]\s?\d+\b")
# A field that generators write has its sign once; one that repeats it thousands of times is there to cost time.
_TRIES = 8
_NEAR_CHARS = 400


def _followed(text: str, first: re.Pattern[str], second: re.Pattern[str]) -> bool:
    """Is one of the first places of `first` followed by `second`, near enough? In time linear in the text."""
    starts = (found.end() for found in itertools.islice(first.finditer(text), _TRIES))
    return any(second.search(text[start - 1 : start + _NEAR_CHARS]) for start in starts)


def _is_a1111(text: str) -> bool:
    return _followed(text, _STEPS, _SAMPLING)


def _contains(*signs: str) -> Callable[[str], bool]:
    return lambda text: all(sign in text for sign in signs)


def _json_with(*keys: str) -> Callable[[str], bool]:
    """A JSON object that has all these keys somewhere; it need not be whole, long ones are cut."""
    signs = [f'"{key}"' for key in keys]
    return lambda text: text.lstrip().startswith("{") and all(sign in text for sign in signs)


# (slug, keywords of the text chunk or None for any text, test of the text), the more particular first.
FORMS: Sequence[tuple[str, frozenset[str] | None, Callable[[str], bool]]] = (
    ("invokeai", frozenset({"invokeai_metadata", "invokeai_graph", "invokeai_workflow"}), _json_with()),
    ("invokeai", frozenset({"sd-metadata"}), _json_with("app_id", "image")),
    ("invokeai", frozenset({"Dream"}), lambda text: _followed(text, _DREAM_STEPS, _DREAM_SIZE)),
    ("invokeai", None, _json_with("app_version", "generation_mode")),
    ("fooocus", frozenset({"fooocus_scheme"}), lambda text: text in ("fooocus", "a1111")),
    ("fooocus", None, lambda text: "Version: Fooocus" in text and _is_a1111(text)),
    ("fooocus", None, _json_with("metadata_scheme", "base_model", "prompt")),
    ("swarmui", None, _json_with("sui_image_params")),
    ("novelai", frozenset({"Comment", "comment", "user_comment"}), _json_with("request_type", "signed_hash")),
    ("novelai", frozenset({"Source"}), lambda text: text.startswith("NovelAI Diffusion")),
    ("tensor-art", frozenset({"generation_data"}), _json_with("prompt", "baseModel")),
    ("mflux", None, _json_with("mflux_version")),
    ("draw-things", frozenset({"user_comment"}), _json_with("c", "seed", "sampler", "v2")),
    ("comfyui", None, _json_with("class_type", "inputs")),
    ("comfyui", None, _json_with("nodes", "links", "last_node_id")),
    ("easy-diffusion", None, _json_with("use_stable_diffusion_model", "num_inference_steps")),
    ("midjourney", None, lambda text: bool(_MIDJOURNEY_JOB.search(text))),
    (
        "stable-diffusion-cpp",
        None,
        lambda text: "Version: stable-diffusion.cpp" in text and _is_a1111(text),
    ),
    ("stable-diffusion-webui", None, _is_a1111),
)

# Names in fields that name software; matched as whole words, without case.
NAMES: Sequence[tuple[str, str]] = (
    ("novelai", r"novel ?ai"),
    ("dall-e", r"dall[-·•. ]?e(?: ?[23])?"),
    ("openai", r"openai|chatgpt|gpt-image-\d+|gpt-4o"),
    ("firefly", r"adobe firefly|firefly image \d"),
    ("midjourney", r"mid ?journey"),
    ("stable-diffusion-webui", r"stable[- ]diffusion[- ]web ?ui|automatic1111|sd\.next"),
    ("comfyui", r"comfy ?ui"),
    ("invokeai", r"invoke ?ai"),
    ("fooocus", r"fooocus"),
    ("swarmui", r"swarm ?ui"),
    ("draw-things", r"draw things"),
    ("diffusionbee", r"diffusion ?bee"),
    ("easy-diffusion", r"easy ?diffusion"),
    ("mflux", r"mflux"),
    ("flux", r"black forest labs|ai generated;(?:txt|img)2img;flux"),
    ("dreamstudio", r"dream ?studio"),
    ("stable-horde", r"(?:stable|ai) horde"),
    ("stable-diffusion", r"stable[- ]diffusion"),
    ("google-ai", r"(?:made|edited|created) with google ai|google (?:imagen|gemini)|imagefx|nano banana"),
    ("meta-ai", r"imagined with (?:meta )?ai|meta ai"),
    ("bing-image-creator", r"bing image creator|image creator (?:from|in) (?:designer|bing)|microsoft designer"),
    ("ideogram", r"ideogram(?: ai)?"),
    ("leonardo", r"leonardo\.ai"),
    ("recraft", r"recraft(?: ai)?"),
    ("seedream", r"seedream|jimeng|即梦"),
)
SLUGS = tuple(dict.fromkeys([form[0] for form in FORMS] + [slug for slug, _ in NAMES]))
_NAMES = [(slug, re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)) for slug, pattern in NAMES]

_NAMING_CHUNKS = frozenset({"Software", "software", "Source", "CreatorTool"})
_NAMING_TAGS = (exif.SOFTWARE, exif.MAKE)
_NAMING_PROPERTIES = ("creator_tool", "software", "credit")


def recognise(
    texts: Sequence[tuple[str, str]], exif_texts: Mapping[int, str], xmp_properties: Mapping[str, str]
) -> str | None:
    """The slug of the generator that wrote these fields, by their form before their names."""
    fields = [(keyword, _looked_at(text)) for keyword, text in texts]
    fields += [("exif", _looked_at(_unprefixed(text))) for text in exif_texts.values()]
    fields += [(name, _looked_at(text)) for name, text in xmp_properties.items()]
    for slug, keywords, test in FORMS:
        if any((keywords is None or keyword in keywords) and test(text) for keyword, text in fields):
            return slug
    if _easy_diffusion(dict(texts)):
        return "easy-diffusion"
    names = [text for keyword, text in texts if keyword in _NAMING_CHUNKS]
    names += [exif_texts[tag] for tag in _NAMING_TAGS if tag in exif_texts]
    names += [xmp_properties[name] for name in _NAMING_PROPERTIES if name in xmp_properties]
    for slug, pattern in _NAMES:
        if any(pattern.search(name[:256]) for name in names):
            return slug
    return None


def _looked_at(text: str) -> str:
    half = _LOOKED_AT_CHARS // 2
    return text if len(text) <= _LOOKED_AT_CHARS else text[:half] + text[-half:]


def _unprefixed(text: str) -> str:
    """ComfyUI writes `prompt:{…}` and `workflow:{…}` into EXIF fields of WebP files."""
    return re.sub(r"^(?:prompt|workflow)\s*:\s*(?=\{)", "", text, count=1, flags=re.IGNORECASE)


def _easy_diffusion(chunks: Mapping[str, str]) -> bool:
    """Easy Diffusion writes each parameter as a chunk of its own."""
    return "prompt" in chunks and "seed" in chunks and "use_stable_diffusion_model" in chunks
