# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.models.sizes [PATTERN]``: min_size and max_size of the nets, as JSON for metadata.json."""

import json
import sys

from fastcnn.models import list_models, metadata
from fastcnn.models.inputs import size_limits
from fastcnn.models.registry import _ENTRY_POINTS


def limits(name: str) -> dict[str, int]:
    facts = metadata(name)
    arguments = {"num_classes": facts.get("num_classes", 1000), "in_chans": facts["input_size"][0]}
    return size_limits(lambda: _ENTRY_POINTS[name](**arguments), facts["input_size"])


if __name__ == "__main__":
    rows = []
    for name in list_models(*sys.argv[1:2]):
        rows.append(f" {json.dumps(name)}: {json.dumps(limits(name))}")
        print(rows[-1], file=sys.stderr, flush=True)
    print("{\n" + ",\n".join(rows) + "\n}")
