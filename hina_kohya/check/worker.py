"""The other end of `process`: requests by line on stdin, answers as lines of JSON on stdout.

Every line says how far it came, so that the caller knows what failed when a network or an optimizer ends the process.
"""

import base64
import json
import os
import pickle
import sys
from typing import Any

from hina_kohya.trainers.errors import UserError


def main() -> int:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # networks print

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    for line in sys.stdin:
        request = pickle.loads(base64.b64decode(line))
        try:
            _answer(request, tell)
        except UserError as error:
            tell(error=str(error))
        tell(done=True)
    return 0


def _answer(request: dict[str, Any], tell: Any) -> None:
    what = request.pop("what")
    if what == "rehearsal":
        from hina_kohya.check.rehearsal import stage  # noqa: PLC0415 (torch: each imports what it needs)

        tell(**stage.rehearse(**request))
    else:
        from hina_kohya.check.forecast import worker  # noqa: PLC0415

        answer = worker.parameters if what == "parameters" else worker.run
        answer(worker.Request(**request), tell)
