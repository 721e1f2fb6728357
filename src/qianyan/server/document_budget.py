"""What the documents of one request hold together: so much text, and so many pictures."""

from dataclasses import replace

from qianyan.errors import CapacityError
from qianyan.inputs.document_parts import Document
from qianyan.inputs.parts import DocumentReader
from qianyan.inputs.shortening import LEAST_CHARS_PER_PICTURE


class DocumentBudget:
    """Counts the text of one request's documents, and their pictures."""

    def __init__(self, most: int, most_pictures: int) -> None:
        self._most = most
        self._most_pictures = most_pictures
        self._num_characters = 0
        self._num_pictures = 0

    def counting(self, reader: DocumentReader) -> DocumentReader:
        """Let what a reader reads count."""

        def read(sees: bool) -> Document:
            document = reader(sees)
            num_pictures = sum(not isinstance(part, str) for part in document.parts)
            if num_pictures and self._num_pictures + num_pictures > self._most_pictures:
                document = self._text_of(document, num_pictures)
            else:
                self._num_pictures += num_pictures
            self._num_characters += sum(
                len(part) for part in document.parts if isinstance(part, str)
            )
            if self._num_characters > self._most:
                raise CapacityError(
                    f"The documents of this request hold more than {self._most} characters of "
                    "text; expected at most that. Ask about fewer at once."
                )
            return document

        return read

    def _text_of(self, document: Document, num_pictures: int) -> Document:
        """Leave out the pictures of a document that has text; a scan stays as it is."""
        texts = [part for part in document.parts if isinstance(part, str)]
        if sum(map(len, texts)) <= LEAST_CHARS_PER_PICTURE * num_pictures:
            return document
        note = (
            f"{num_pictures} pictures not shown, as the documents of the request have more than "
            f"{self._most_pictures}"
        )
        return replace(document, parts=("\n\n".join(texts),), notes=(*document.notes, note))
