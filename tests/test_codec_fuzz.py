"""Mutated envelopes end in a CodecError or an exact round trip; `python -m tests.fuzz_codec` runs many more."""

from __future__ import annotations

import sys

import fuzz_codec
import pytest


@pytest.mark.parametrize("seed", [11, 12])
def test_mutated_envelopes_are_refused_or_read_exactly(seed: int) -> None:
    outcomes = fuzz_codec.run(2000, seed)
    assert outcomes.total() == 2000
    assert outcomes["exact"] > 100
    assert {"MalformedEnvelope", "ContractViolation", "UnknownContract", "newer"} <= set(outcomes)


def test_the_command_line_tells_the_outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz_codec", "--count", "50", "--seed", "5"])
    assert fuzz_codec.main() == 0
    assert "50 mutated envelopes" in capsys.readouterr().out


def test_a_finding_names_its_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_codec.Oracle, "expected", lambda self, payload: None)
    with pytest.raises(AssertionError, match="taken, though wrong") as caught:
        fuzz_codec.run(200, 5)
    assert "seed 5" in caught.value.__notes__[0]
