"""What the documents of one request may hold together."""

import pytest
from PIL import Image

from qianyan.errors import CapacityError
from qianyan.inputs.document_parts import Document
from qianyan.server.document_budget import DocumentBudget

PICTURE = Image.new("RGB", (40, 40))


def read(budget: DocumentBudget, document: Document) -> Document:
    return budget.counting(lambda sees: document)(True)  # noqa: FBT003


def test_text_counts_over_all_documents() -> None:
    budget = DocumentBudget(10, 5)
    read(budget, Document("a", "text", ("123456",)))
    with pytest.raises(CapacityError, match="more than 10 characters"):
        read(budget, Document("b", "text", ("12345",)))


def test_pictures_give_way_where_there_is_text_beside_them() -> None:
    budget = DocumentBudget(10_000, 3)
    first = Document("a", "pdf", ("words " * 30, PICTURE, PICTURE))
    assert read(budget, first) == first
    second = read(budget, Document("b", "pdf", ("words " * 30, PICTURE, "more", PICTURE)))
    assert second.parts == ("words " * 30 + "\n\nmore",)
    assert second.notes == (
        "2 pictures not shown, as the documents of the request have more than 3",
    )


def test_a_scan_stays_as_it_is() -> None:
    scan = Document("a", "pdf", ("[page 1]", PICTURE, PICTURE))
    assert read(DocumentBudget(10_000, 1), scan) == scan
