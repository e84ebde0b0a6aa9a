"""The ledger: it balances, it says when it does not, and parts of it add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.data.ledger import Ledger
from llm_trainer.exceptions import IntegrityError

UNITS = st.tuples(*[st.integers(0, 10**12)] * 3)
ENTRIES = st.lists(
    st.tuples(st.sampled_from(["kept", "dropped"]), st.sampled_from(["short", "empty"]), UNITS)
)


def filled(entries: list[tuple[str, str, tuple[int, int, int]]]) -> Ledger:
    ledger = Ledger("test")
    for kind, reason, units in entries:
        ledger.take_in(*units)
        if kind == "kept":
            ledger.give_out(*units)
        else:
            ledger.drop(reason, *units)
    return ledger


@given(ENTRIES)
def test_what_goes_in_and_comes_out_balances(
    entries: list[tuple[str, str, tuple[int, int, int]]],
) -> None:
    ledger = filled(entries)
    ledger.check()
    assert ledger.into.documents == sum(units[0] for _, _, units in entries)
    books = ledger.to_dict()
    dropped = sum(count["bytes"] for count in books["dropped"].values())
    assert books["in"]["bytes"] == books["out"]["bytes"] + dropped


@pytest.mark.parametrize("unit", ["documents", "bytes", "tokens"])
def test_a_lost_unit_is_named_with_its_numbers(unit: str) -> None:
    ledger = Ledger("packing")
    ledger.take_in(7, 7, 7)
    ledger.add("end", 1, 1, 1)
    ledger.drop("short", 2, 2, 2)
    ledger.give_out(6, 6, 6)
    ledger.check()
    setattr(ledger.out, unit, 5)
    message = f"packing.*7 {unit} in . 1 added, but 5 out . 2 dropped"
    with pytest.raises(IntegrityError, match=message):
        ledger.check()


def test_the_books_are_the_same_in_any_order_of_entry() -> None:
    one, two = Ledger("test"), Ledger("test")
    for ledger, reasons in ((one, "abc"), (two, "cab")):
        for reason in reasons:
            ledger.drop(reason, 1)
            ledger.note(reason, 2)
    assert list(one.to_dict()["dropped"]) == list(two.to_dict()["dropped"]) == ["a", "b", "c"]
    assert one.to_dict() == two.to_dict()
