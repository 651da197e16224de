"""Reads one damaged recording after the other, in a process that may die of it.

Lines of JSON in ({"path", "options"}), lines of JSON out ({"kind", "what", "seconds"}).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import traceback
import warnings


def main(memory: int) -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints gets in between
    from calm_jax.errors import RecordingError
    from calm_jax.recordings.formats import peek_at, read, sessions_in
    from calm_jax.recordings.session import Session

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        try:
            made = read(job["path"], **job["options"])
            ok = isinstance(made, Session) and made.n_frames > 0
            answer = {"kind": "read" if ok else "wrong", "what": type(made).__name__}
            made = None
        except RecordingError as e:
            text = str(e)
            one_line = "\n" not in text and job["path"] in text
            answer = {"kind": "refused" if one_line else "wrong", "what": text[:300]}
        except BaseException as e:
            answer = {"kind": "exception", "what": _told(e)}
        if answer["kind"] in ("read", "refused"):
            try:  # a quick look must not fall where reading does not
                with contextlib.suppress(RecordingError):
                    peek_at(job["path"], **job["options"])
                with contextlib.suppress(RecordingError):
                    sessions_in(job["path"])
            except BaseException as e:
                answer = {"kind": "exception", "what": f"peek: {_told(e)}"}
        answer["seconds"] = time.perf_counter() - start
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _told(e: BaseException) -> str:
    last = traceback.extract_tb(e.__traceback__)[-6:]
    places = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(last))
    return f"{type(e).__name__}: {str(e)[:300]} [{places}]"


if __name__ == "__main__":
    main(int(sys.argv[1]))
