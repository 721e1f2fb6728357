"""Have a model answer under a JSON schema; whatever it says, the answer parses.

Usage: python examples/structured_output.py PHOTO [MODEL]
"""

import json
import sys

import qianyan

SCHEMA = {
    "type": "object",
    "properties": {
        "hazard": {"enum": ["fire", "smoke", "none"]},
        "certain": {"type": "boolean"},
    },
    "required": ["hazard", "certain"],
    "additionalProperties": False,
}


def main(photo: str, model: str = "bundled") -> None:
    """Print the answer as the Python value it parses to."""
    done = qianyan.Engine(model).chat(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": photo}},
                    {"type": "text", "text": "Is something burning? Answer in JSON."},
                ],
            }
        ],
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    )
    print(json.loads(done.text), done.usage)


if __name__ == "__main__":
    main(*sys.argv[1:])
