#!/usr/bin/env python3
"""Writes the variables of a TensorFlow checkpoint to an .npz file that needs no TensorFlow to read.

Takes the files that `tf.train.Saver` of TensorFlow 1 wrote (TensorFlow 2 reads them too), or the `variables/variables`
of a saved model. Needs TensorFlow and NumPy, nothing of this project: copy it to the machine where they are installed.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", help="prefix of the checkpoint (model.ckpt-1000), or its directory for the newest"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("variables.npz"), help="default: variables.npz")
    arguments = parser.parse_args()
    try:
        import tensorflow as tf
    except ImportError as error:
        sys.exit(
            f"dump_tensorflow: TensorFlow is needed to read a checkpoint: run this where it is installed ({error})"
        )
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", arguments.checkpoint)
    try:
        reader = tf.train.load_checkpoint(prefix)
        variables = {name: np.asarray(reader.get_tensor(name)) for name in sorted(reader.get_variable_to_shape_map())}
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        sys.exit(f"dump_tensorflow: {prefix}: no checkpoint that TensorFlow can read ({error})")
    save(arguments.output, variables)


def save(output: Path, variables: dict[str, np.ndarray]) -> None:
    """Writes the numeric variables and prints each with its shape; others, such as text, would need pickle."""
    arrays = {name: widen(array) for name, array in variables.items() if array.dtype.kind not in "OSU"}
    for name, array in arrays.items():
        print(name, list(array.shape), array.dtype)
    for name in variables.keys() - arrays.keys():
        print(f"{name} is not numeric: left out", file=sys.stderr)
    partial = output.with_name(f"{output.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(output)
    print(f"{len(arrays)} variables written to {output}", file=sys.stderr)


def widen(array: np.ndarray) -> np.ndarray:
    """NumPy has no bfloat16 of its own to write (kind V): it becomes float32, which holds all its values."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


if __name__ == "__main__":
    main()
