"""The bounded part of `make fuzz`: a few hundred damaged images and records with every run of the tests."""

import pytest

from tests.fuzz.images import fuzz
from tests.fuzz.mutants import mutant, seeds
from tests.fuzz.records import fuzz_records
from worker.examine import headers


@pytest.mark.integration
def test_damaged_images_end_no_child_and_are_judged_alike():
    """Six hundred damaged images: no death, no hang, no exception, no decoders that differ."""
    found = fuzz(1_000_000, 600)
    assert found.findings == []
    assert sum(found.outcomes.values()) == 600
    assert any(outcome.startswith("verdict") for outcome in found.outcomes)


def test_damaged_records_come_out_as_records():
    """A thousand damaged batches: each offset at most once, readable or not; nothing raises."""
    told = fuzz_records(1000)
    assert told["findings"] == []
    assert min(told["readable"], told["unreadable"], told["rejected"]) > 50


def test_the_same_number_gives_the_same_bytes():
    """A finding is found again by its number."""
    assert [mutant(number) for number in range(50)] == [mutant(number) for number in range(50)]
    assert mutant(1, seed=1) != mutant(1, seed=2)


@pytest.mark.parametrize("number", range(len(seeds())))
def test_what_is_damaged_was_sound(number):
    """Every seed is an image that can be read, so that its damage is what is tested."""
    assert headers.peek(seeds()[number]).width
