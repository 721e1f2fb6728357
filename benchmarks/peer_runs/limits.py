"""What the machine gives at this moment; see ../peers.py. Prints figures."""

import json
import sys

import torch

from qianyan.engine.limits import measure_limits


def main() -> None:
    torch.set_num_threads(json.loads(sys.argv[1])["threads"])
    limits = measure_limits()
    figures = {"read_bytes_per_s": limits.read_bytes_per_s, "matrix_rates": limits.matrix_rates}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
