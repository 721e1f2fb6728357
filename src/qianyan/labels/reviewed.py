"""A photo between a model and a person: what the one predicts and what the other has said.

Tools for annotators (Label Studio, CVAT) take both at once and keep them apart.
"""

from dataclasses import dataclass, replace

from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto


@dataclass(frozen=True, kw_only=True)
class ReviewedPhoto:
    """Labels of persons, and predictions that nobody has reviewed.

    `labels.labelled` are the kinds that a person has been through; there may be labels of other
    kinds too. `predicted` are the kinds that the model looked for.
    """

    labels: LabelledPhoto
    predictions: tuple[LabelledBox, ...]
    predicted: frozenset[Kind]
    model: str

    def is_labelled(self, kinds: frozenset[Kind]) -> bool:
        """Whether a person has been through all of these kinds."""
        return self.labels.labelled >= kinds

    def as_labels(self, kinds: frozenset[Kind]) -> LabelledPhoto:
        """Give what persons say about those of the kinds that they have been through."""
        searched = self.labels.labelled & kinds
        return replace(self.labels, labelled=searched, boxes=tuple(self.labels.of_kind(*searched)))

    def as_prediction(self, kinds: frozenset[Kind]) -> LabelledPhoto:
        """Give labels and predictions together, as one proposal of what the photo shows."""
        boxes = (*self.labels.boxes, *self.predictions)
        return replace(
            self.labels,
            labelled=(self.labels.labelled | self.predicted) & kinds,
            boxes=tuple(box for box in boxes if box.kind in kinds),
        )
