"""The README of an export, generated from its policy and parity."""

from __future__ import annotations

from typing import Any

from rdi.exporting.policies import describe

PRECISIONS = {
    "float32": "float32",
    "bf16": "float32 with weights stored in bfloat16",
    "int8": "int8 inside (QDQ, weights per channel), float32 between the files",
}
RUN = """```python
import numpy as np
from runner import Runner

out = Runner(".")(np.load("examples.npz")["images"])    # uint8, or float in [0, 1]; any number of images
print(out.labels, out.exits, out.macs)
```"""


def page(policy: dict[str, Any], parity: dict[str, Any]) -> str:
    """Write the page: files, how to run them with and without Python, how well they agree with the network."""
    stages, form = policy["stages"], policy["stage_format"]
    size = "x".join(map(str, policy["image"]["shape"]))
    where = "ONNX" if form["name"] == "onnx" else "torch.export"
    opset = f", opset {form['opset']}" if "opset" in form else ""
    needs = "numpy and onnxruntime" if form["name"] == "onnx" else "numpy and torch"
    answers = "the network" if policy["precision"] == "float32" else "this export when it was made"
    rows = [
        f"| `{stage['file']}` | {stage['macs']:,} | {stage['bytes']:,} | `{stage['sha256'][:12]}` |" for stage in stages
    ]
    parts = [
        "# An early-exit network, stage by stage",
        f"Made by `rdi export`. Images of {size} (CxHxW), {len(policy['classes'])} classes, {len(stages)} exits; "
        f"{where}{opset}, dynamic batch, {PRECISIONS[policy['precision']]}, BatchNorm folded, "
        "normalisation inside stage 0. `policy.json` says who leaves where, and holds the sha256 of every stage.",
        "\n".join(["| file | MACs, stage and head | bytes | sha256 |", "|---|---|---|---|", *rows]),
        f"## From Python, with {needs}",
        RUN if form["name"] == "onnx" else RUN.replace('Runner(".")', 'Runner(".", trust=True)'),
        f"`python runner.py` compares the 16 (or fewer) stored examples with the answers of {answers}.",
        "## From any language",
        "Stage k takes `features` (stage 0: the image) and gives `next_features` and `logits`; the last gives `logits` "
        "alone. `examples.npz` holds images, logits, labels and exits to test with.",
        describe(policy["decision"], policy["combine"], len(stages)),
        "A batch: take the images that left out of `features` before the next stage; that is where the time is saved.",
        *_single(policy),
        "## Agreement with the network",
        f"On {parity['images']} test images: {parity['labels_and_exits_equal']} with the same label and exit, largest "
        f"difference of a logit {parity['largest_logit_difference']:.2g}, {len(parity['near_threshold'])} within "
        f"{parity['near']:g} of a threshold, {len(parity['unexplained'])} different without being near one "
        "(`parity.json`).",
    ]
    if "single" in parity:
        one = parity["single"]
        parts.append(
            f"`{policy['single']['file']}`, on the examples: {one['labels_and_exits_equal']} of {one['images']} with "
            "the label and exit of the stages."
        )
    if "judged" in parity:
        clean, worst = parity["judged"]["clean"], parity["judged"]["worst_case"]
        parts.append(
            f"It is another network than that in float32, and was judged anew: clean accuracy "
            f"{100 * clean['accuracy']:.1f} % ({100 * clean['of_the_network']:.1f} % in float32); "
            + (
                f"right under {len(worst['attacks'])} attacks {100 * worst['accuracy']:.1f} % "
                f"({100 * worst['of_the_network']:.1f} %) of {worst['images']} images, {worst['says']}; "
                if worst["images"]
                else "its worst case was not measured; "
            )
            + f"certified accuracy: {parity['judged']['certified']['says']}."
        )
    return "\n\n".join(parts) + "\n"


def _single(policy: dict[str, Any]) -> list[str]:
    """Describe the file of the whole network, where there is one."""
    if "single" not in policy:
        return []
    return [
        f"`{policy['single']['file']}` is all of it in one graph, for one image at a time: input `image`, outputs "
        "`label`, `exit` and `logits`. Later stages lie in the else branches of nested `If`s and do not run where the "
        "image has left. For batches take the stages: there, an `If` would have to hold all images back."
    ]
