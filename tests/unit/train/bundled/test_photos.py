"""Labelled photos are read with what is known and what is not."""

import json

import numpy as np
import pytest
from PIL import Image

from qianyan.errors import ConfigError, MediaError
from qianyan.labels.photos import LabelledPhoto
from qianyan.train.bundled.photos import read_photos, split_held_out

CATEGORIES = [{"id": 1, "name": "fire"}, {"id": 3, "name": "person"}, {"id": 5, "name": "head"}]


def write_folder(folder, images, annotations):
    (folder / "images").mkdir()
    for image in images:
        pixels = np.full((image["height"], image["width"], 3), 80, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    content = {"categories": CATEGORIES, "images": images, "annotations": annotations}
    (folder / "annotations_train.json").write_text(json.dumps(content))


def image(number, **more):
    return {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30, **more}


def annotation(image_id, category_id, bbox, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def test_boxes_of_kinds_nobody_was_asked_to_label_are_left_out(tmp_path):
    labels = [annotation(1, 1, [1, 2, 10, 12]), annotation(1, 3, [0, 0, 20, 20])]
    write_folder(tmp_path, [image(1, labeled_categories=["fire"])], labels)
    (photo,) = read_photos(tmp_path, "train")
    assert photo.labelled == {"fire"}
    assert [(box.kind, box.box) for box in photo.boxes] == [("fire", (1, 2, 11, 14))]
    assert photo.has("fire")
    assert not photo.has("person")


def test_without_the_field_every_kind_counts_as_labelled(tmp_path):
    write_folder(tmp_path, [image(1)], [])
    (photo,) = read_photos(tmp_path, "train")
    assert photo.labelled == {"fire", "person", "head"}
    assert photo.boxes == ()


def test_the_whole_head_is_preferred_to_the_hat_and_cut_at_the_edge(tmp_path):
    label = annotation(1, 5, [30, 0, 20, 5], bbox_head=[30, -4, 20, 25])
    write_folder(tmp_path, [image(1)], [label])
    (photo,) = read_photos(tmp_path, "train")
    assert photo.boxes[0].box == (30, 0, 40, 21)


def test_slips_smaller_than_two_pixels_are_left_out(tmp_path):
    write_folder(tmp_path, [image(1)], [annotation(1, 1, [5, 5, 1, 20])])
    assert read_photos(tmp_path, "train")[0].boxes == ()


def test_pixels_are_read_as_rgb(tmp_path):
    write_folder(tmp_path, [image(1)], [])
    pixels = read_photos(tmp_path, "train")[0].read()
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8


def test_a_missing_annotation_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_photos(tmp_path, "val")


def test_a_malformed_annotation_file_is_one_sentence(tmp_path):
    (tmp_path / "annotations_train.json").write_text('{"images": []}')
    with pytest.raises(ConfigError, match="expected images, annotations"):
        read_photos(tmp_path, "train")


def test_a_missing_picture_is_a_media_error(tmp_path):
    photo = LabelledPhoto(tmp_path / "gone.jpg", 4, 4, frozenset(), ())
    with pytest.raises(MediaError, match=r"gone\.jpg"):
        photo.read()


def test_held_out_photos_are_runs_that_training_does_not_get(tmp_path):
    photos = [LabelledPhoto(tmp_path / str(i), 4, 4, frozenset(), ()) for i in range(600)]
    kept, held = split_held_out(photos)
    assert sorted(p.path for p in kept + held) == sorted(p.path for p in photos)
    assert not {p.path for p in kept} & {p.path for p in held}
    assert 0.04 < len(held) / len(photos) < 0.09


def test_development_photos_are_read_whole(shared):
    """The development set has the counts that its README states."""
    photos = read_photos(shared / "data" / "dev", "val")
    assert len(photos) == 528
    assert sum(photo.has("fire") for photo in photos if "fire" in photo.labelled) == 237
    assert all(photo.path.exists() for photo in photos)
