"""Run `transformers serve` for image checkpoints where torchvision is not installed.

Transformers asks torchvision for the processor's video part and for one of its two image
processors. Pictures need neither: the processor is composed here from the Pillow one, and all
else is the command as it comes.

    python serve_checkpoint.py PORT
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Qwen2_5_VLProcessor
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.transformers import main
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class PictureProcessor(Qwen2_5_VLProcessor):
    """A processor without its video part, whose check would need torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)


def load_processor(
    self: ModelManager, model_id_and_revision: str, gguf_file: str | None = None
) -> PictureProcessor:
    """Compose the processor of a checkpoint folder."""
    folder = Path(model_id_and_revision.partition("@")[0])
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    return PictureProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            min_pixels=settings["min_pixels"], max_pixels=settings["max_pixels"]
        ),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


if __name__ == "__main__":
    ModelManager._load_processor = load_processor
    sys.argv = ["transformers", "serve", "--host", "127.0.0.1", "--port", sys.argv[1]]
    sys.argv += ["--device", "cpu", "--dtype", "float32"]
    main()
