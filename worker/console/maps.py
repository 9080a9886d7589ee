"""Which parts of an image speak for the decision, as `explain` draws it, for the page."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image

from worker.clients.triton import InferenceFailed
from worker.console.images import NoImage, Shown
from worker.contract import Verdict
from worker.errors import Unavailable
from worker.explain.margins import margins
from worker.explain.page import overlay
from worker.explain.subject import CODE, deciding, served
from worker.policy import Facts, Policy
from worker.settings import Settings

_KEPT = 200


class Maps:
    """One at a time: each asks the model fifty times. Raises NoImage where the model does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def drawn(self, found: Shown, verdict: Verdict, policy: Policy) -> bytes:
        """A PNG. `found.crop` is a picture of our own making."""
        name = str(verdict.verdict_id)
        with self._lock:
            if name in self._kept:
                return self._kept[name]
            pixels = np.asarray(Image.open(io.BytesIO(found.crop)).convert("RGB"))
            found_margins = margins(policy, Facts.of(verdict))
            about = deciding(found_margins, verdict.decision, CODE)  # the picture is the crop that `code` looks at
            try:
                with served(self._settings, about) as model:
                    attribution = model.attribute(pixels)
            except (Unavailable, InferenceFailed) as error:
                raise NoImage(f"the model does not answer: {error}") from None
            out = io.BytesIO()
            overlay(pixels, attribution).save(out, "PNG")
            self._kept[name] = out.getvalue()
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return out.getvalue()
